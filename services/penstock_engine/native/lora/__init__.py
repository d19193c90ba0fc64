"""LoRA adapters: read from a directory on first use, computed beside the base model's products."""
