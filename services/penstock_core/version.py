"""The version of this code, kept here so that no process has to look up package metadata."""

VERSION = "0.1.0"

# Metadata of every answer about health, for whoever checks a deployment.
VERSION_KEY = "penstock-version"
UNIX_MS_KEY = "penstock-unix-ms"
