"""Wire types of penstock.worker, by version."""
