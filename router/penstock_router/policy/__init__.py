"""The decision, pure: what a request costs on each worker, and who gets it."""
