"""Wire types of penstock.batch.v1."""
