"""Wire types of penstock.worker.v1."""
