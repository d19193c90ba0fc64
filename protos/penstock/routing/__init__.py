"""Wire types of penstock.routing, by version."""
