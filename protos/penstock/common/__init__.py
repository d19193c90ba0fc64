"""Wire types of penstock.common, by version."""
