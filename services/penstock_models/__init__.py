"""The demo model and its draft, as Hugging Face directories that come with the package.

``DEMO`` completes Python code; ``DEMO_DRAFT`` guesses for it in speculative decoding. Both were
trained by ``tools/train_demo_model.py``, and each directory's ``README.md`` is its model card.
"""

from __future__ import annotations

from pathlib import Path

DEMO: Path = Path(__file__).parent / "demo"
"""Directory of the demo model."""

DEMO_DRAFT: Path = Path(__file__).parent / "demo_draft"
"""Directory of the draft model, which shares the demo model's tokeniser."""
