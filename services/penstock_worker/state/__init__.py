"""What routers hear of this worker: its cache and its load."""
