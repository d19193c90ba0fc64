"""The queue: who waits, in which order, and who goes where when a worker opens."""
