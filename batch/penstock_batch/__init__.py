"""Offline batches: write-once facts in an object store, Celery for the work, gRPC in front."""
