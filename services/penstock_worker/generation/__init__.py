"""One request, from its first token to its last message."""
