"""The Celery side: the app, metered tasks, the relay's bootstep, the schedule, ingestion tasks."""
