"""Measurements that ``penstock bench`` prints."""
