"""The main job, told as a story: stream, hit the cache, run a batch."""
