"""Several nodes of each server here, one of them lost under load: ``python -m scale``."""
