"""What only a GPU runs: a paged attention kernel and captured decode steps."""
