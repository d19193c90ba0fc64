"""Tokenizers and chat templates of the models that workers serve, loaded once each.

A worker says where its tokenizer comes from and what its digest is. Another digest here means that
router and worker would disagree about every token, so such a worker gets nothing.
"""

import asyncio
import logging
from dataclasses import dataclass

from penstock_core.errors import NotFound, NotSupported
from penstock_router.frames import WorkerFacts
from penstock_text.chat import ChatTemplate
from penstock_text.source import resolve_model
from penstock_text.tokenizer import Tokenizer

# Of each tokenizer; tokens in memory take about four times as many bytes.
_CACHE_CHARS = 16 * 1024 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelText:
    """What turns a model's text into tokens and back."""

    tokenizer: Tokenizer
    template: ChatTemplate | None


@dataclass(frozen=True, slots=True)
class TextProblem:
    """Why there is no text for a worker; a mismatch makes its token ids wrong as well."""

    why: str
    is_mismatch: bool = False


class TextLibrary:
    """Loaded tokenizers by (source, digest). A problem is remembered until no worker has it."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str], asyncio.Future[ModelText | TextProblem]] = {}

    async def get(self, facts: WorkerFacts) -> ModelText | TextProblem:
        """The worker's tokenizer, or why there is none."""
        key = (facts.tokenizer_source, facts.tokenizer_digest)
        future = self._loaded.get(key)
        if future is None:
            future = self._loaded[key] = asyncio.get_running_loop().create_future()
            found: ModelText | TextProblem = TextProblem("its loading was interrupted")
            try:
                found = await asyncio.to_thread(_load, *key)
            finally:
                future.set_result(found)
            if isinstance(found, TextProblem):
                logger.warning("worker %s: %s", facts.worker_id, found.why)
        return await asyncio.shield(future)

    def has(self, facts: WorkerFacts) -> bool:
        """Whether it is loaded or being loaded."""
        return (facts.tokenizer_source, facts.tokenizer_digest) in self._loaded

    def keep(self, used: set[tuple[str, str]]) -> None:
        """Forget what no worker uses."""
        for key in [k for k, f in self._loaded.items() if k not in used and f.done()]:
            del self._loaded[key]


def _load(source: str, digest: str) -> ModelText | TextProblem:
    try:
        path = resolve_model(source, weights=False)
        tokenizer = Tokenizer.load(path, cache_chars=_CACHE_CHARS)
        template = ChatTemplate.load(path)
    except (NotFound, NotSupported, OSError, ValueError) as error:
        return TextProblem(f"its tokenizer cannot be loaded here: {error}")
    if digest and tokenizer.digest != digest:
        why = f"its tokenizer has digest {digest}, the one at {source} has {tokenizer.digest}"
        return TextProblem(why, is_mismatch=True)
    return ModelText(tokenizer, template)
