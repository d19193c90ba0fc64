"""Calls: servers, channels, what every call goes through, and how its failures travel."""
