"""Servers of ours in this process, and others that pretend."""
