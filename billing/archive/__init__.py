"""Months of the log in Parquet files, outside the database."""
