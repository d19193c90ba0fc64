"""Wire types of penstock.routing.v1."""
