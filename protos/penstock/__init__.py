"""Penstock's wire types: generated from the .proto files beside them."""
