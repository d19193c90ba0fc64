"""Wire types of penstock.batch, by version."""
