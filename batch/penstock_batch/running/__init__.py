"""The work itself: one shard's requests, their retries and pace, the final files."""
