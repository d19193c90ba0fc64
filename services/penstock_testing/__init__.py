"""Fakes and in-process servers that tests and benchmarks stand on, shipped with the code."""
