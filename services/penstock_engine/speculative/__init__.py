"""Speculative decoding: guessing tokens cheaply and letting the model check several at once."""
