"""Which worker holds which blocks, and which are on their way."""
