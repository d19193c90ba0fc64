"""The version of this code, kept here so that no process has to look up package metadata."""

VERSION = "0.1.0"
