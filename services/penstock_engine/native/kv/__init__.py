"""Pages of the KV cache, who holds them and which are kept: accounting alone, no tensors."""
