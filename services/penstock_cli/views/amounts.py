"""Numbers as people read them."""


def duration(seconds: float) -> str:
    """Microseconds, milliseconds or seconds, three significant digits."""
    if abs(seconds) < 1e-9:
        return "0"
    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    if abs(seconds) < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if abs(seconds) < 1000 else f"{seconds:.0f} s"


def share(part: float, whole: float) -> str:
    """A percentage; a dash where there is nothing to share."""
    return f"{100 * part / whole:.0f} %" if whole else "-"
