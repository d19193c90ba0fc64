"""Wire types of penstock.inference, by version."""
