"""The times at which streams that may wait send, all of them together."""

TICK_S = 0.020
"""Workers send at multiples of it, and routers ask for delays of so many."""
