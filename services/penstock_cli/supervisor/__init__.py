"""Starts the platform's processes on this machine, keeps them running and stops them together."""
