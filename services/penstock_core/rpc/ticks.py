"""The times at which streams that may wait send, all of them together."""

TICK_S = 0.020
"""Workers send at multiples of it, and routers ask for delays of so many."""


def until_tick_s(now_s: float, tick_s: float = TICK_S) -> float:
    """Seconds from now, by the event loop's clock, to the next tick; none if ticks are 0 s apart."""
    return tick_s - now_s % tick_s if tick_s else 0.0
