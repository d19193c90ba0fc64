"""The embedded PyTorch engine. Scheduler, pages, prefix tree and request hold no torch."""
