"""The decode worker: one engine behind gRPC, with a feed of what it holds and does."""
