"""A fleet of simulated workers under one routing policy: what a rule is worth, before it serves."""
