"""Engines without a model, or with a tiny one, and what all of them must pass."""
