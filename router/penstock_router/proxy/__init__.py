"""Forwarding streams: one attempt after another, raw bytes, and what to go on from."""
