"""How embeddings look in a terminal."""

from collections.abc import Sequence

from rich.table import Table

from penstock_client import Embeddings

_SHOWN_CHARS = 32
_SHOWN_COMPONENTS = 8


def similarities(texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> Table:
    """The cosine of each text with each; the vectors have length 1."""
    table = Table(box=None, pad_edge=False)
    table.add_column("text")
    for number in range(1, len(texts) + 1):
        table.add_column(str(number), justify="right")
    for number, (text, row) in enumerate(zip(texts, vectors, strict=True), 1):
        cosines = [sum(a * b for a, b in zip(row, other, strict=True)) for other in vectors]
        name = text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"
        table.add_row(f"{number} {name}", *(f"{cosine:.3f}" for cosine in cosines))
    return table


def leading(found: Embeddings) -> str:
    """The first components of a single vector."""
    vector = found.vectors[0]
    shown = ", ".join(f"{value:.4f}" for value in vector[:_SHOWN_COMPONENTS])
    return f"{shown}{', …' if len(vector) > _SHOWN_COMPONENTS else ''}"
