"""Wire types of penstock.common.v1."""
