"""What a process tells of itself: traces, metrics, logs, and the names in them."""
