"""Celery: its app, its tasks, what is enqueued and by whom."""
