"""Wire types of penstock.inference.v1."""
