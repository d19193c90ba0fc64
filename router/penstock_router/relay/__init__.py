"""Calls of ``Generate`` on workers: many on one stream, or one by one where that cannot be."""
