"""The ``penstock`` command: starts, asks, watches and measures the platform."""
