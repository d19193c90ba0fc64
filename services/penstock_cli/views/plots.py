"""Plots of simulations as PNG files."""

from collections.abc import Sequence
from pathlib import Path

from penstock_router.simulate.report import Result

TTFT_FILE = "ttft.png"
HIT_RATE_FILE = "hit_rate.png"
_SIZE = (8.0, 5.0)


def save_plots(results: Sequence[Result], folder: Path) -> list[Path]:
    """Save the distribution of TTFT and the hit rate over time; returns the files.

    Raises:
        OSError: the folder cannot be written to.
    """
    # Imported here: it takes a second, and nothing else needs it.
    from matplotlib.figure import Figure  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    ttft = Figure(figsize=_SIZE, layout="constrained")
    axes = ttft.subplots()
    for each in results:
        count = len(each.ttft_s)
        shares = [(n + 1) / count for n in range(count)]
        axes.step(each.ttft_s, shares, where="post", label=each.summary.policy)
    axes.set(xscale="log", xlabel="time to first token (s)", ylabel="share of requests")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    hits = Figure(figsize=_SIZE, layout="constrained")
    axes = hits.subplots()
    for each in results:
        times = [at for at, _ in each.hit_rate_at]
        axes.plot(times, [rate for _, rate in each.hit_rate_at], label=each.summary.policy)
    axes.set(xlabel="time of arrival (s)", ylabel="cached share of prompt tokens")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    files = [folder / TTFT_FILE, folder / HIT_RATE_FILE]
    for figure, path in zip((ttft, hits), files, strict=True):
        figure.savefig(path, dpi=120)
    return files
