"""The corpus: the running interpreter's own standard library, split by module.

A top-level module is held out when a hash of its name says so, which nobody can steer towards
easy modules. Whatever could give a held-out module away stays out of training too: its tests,
its ``_py`` twin, files elsewhere that bear its name, and files that repeat its lines.
"""

from __future__ import annotations

import hashlib
import io
import re
import sysconfig
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

HELD_OUT_ONE_IN = 16
"""One top-level module in this many is held out."""

_JUNK_PARTS = {"site-packages", "__pycache__", "pydoc_data", "cjkencodings", "data"}
_JUNK_NAME = re.compile(r"bad(syntax|_|coding)|^bad|topics\.py$|_pyrepl_keysyms|^__phello__")
_TEST_PARTS = {"test", "tests", "idle_test"}
_TEST_NAME = re.compile(r"^_?test_|_?tester$|_?tests?$")


@dataclass
class Corpus:
    """Texts to train on and to measure on, by path below the library's root."""

    library: dict[str, str] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)
    held_out: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def held_out_modules(self) -> list[str]:
        """Names of the top-level modules that are measured on."""
        return sorted({Path(path).parts[0].removesuffix(".py") for path in self.held_out})


def family(name: str) -> str:
    """Return the module a name belongs to: ``test_decimal``, ``_pydecimal`` give ``decimal``.

    Args:
        name: One part of a path, with or without ``.py``.
    """
    stem = name.removesuffix(".py")
    stem = re.sub(r"^_*(test_)?_*|(_?tester|_?tests)$", "", stem)
    return re.sub(r"^py(?=decimal|io|datetime|abc|warnings|bootstrap|long)", "", stem)


def is_held_out(name: str) -> bool:
    """Return whether a top-level module of this name is held out.

    Args:
        name: A top-level name, with or without ``.py``.
    """
    digest = hashlib.sha256(family(name).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def read_source(path: Path) -> str | None:
    """Return a file's text in its declared encoding, or None where it is not proper source."""
    raw = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
        text.encode()
    except (SyntaxError, UnicodeError, LookupError):
        return None
    return text.removeprefix("\ufeff")


def is_table(text: str) -> bool:
    """Return whether a text is generated, or made of data rather than of code."""
    if "generated from" in text[:400] or "gencodec" in text[:1000]:
        return True
    data = sum(c.isdigit() for c in text) + text.count("\\x") * 3
    return data > 0.14 * len(text) or (not text.isascii() and _non_ascii(text) > 0.05)


def _non_ascii(text: str) -> float:
    """Return the share of characters outside ASCII."""
    return sum(not c.isascii() for c in text) / len(text)


def is_test(relative: Path) -> bool:
    """Return whether a path below the library's root holds tests."""
    if _TEST_PARTS & set(relative.parts[:-1]):
        return True
    return len(relative.parts) == 1 and bool(_TEST_NAME.search(relative.stem))


def sources(root: Path) -> dict[Path, str]:
    """Return every distinct source worth learning from, by path below the root.

    Args:
        root: The standard library's folder.
    """
    found: dict[Path, str] = {}
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _JUNK_PARTS & set(relative.parts) or _JUNK_NAME.search(path.name):
            continue
        text = read_source(path)
        if text is None or len(text) < 64 or is_table(text):
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if digest not in seen:
            seen.add(digest)
            found[relative] = text
    return found


def _long_lines(text: str) -> set[str]:
    """Return the distinct lines that are long enough not to agree by chance."""
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= 32}


def load_corpus(root: Path | None = None) -> Corpus:
    """Read and split the standard library.

    Args:
        root: Its folder; by default the running interpreter's.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    found = sources(root)
    held = {p for p in found if not is_test(p) and is_held_out(p.parts[0])}
    names = {family(p.parts[0]) for p in held}
    corpus = Corpus(held_out={p.as_posix(): found[p] for p in held})
    secret = [_long_lines(text) for text in corpus.held_out.values()]
    secret = [lines for lines in secret if len(lines) >= 8]
    for path, text in found.items():
        if path in held:
            continue
        related = any(family(part) in names for part in path.parts)
        stem_words = set(path.stem.split("_")) | {family(path.name)}
        lines = _long_lines(text)
        copied = any(len(lines & other) > 0.15 * len(other) for other in secret)
        if related or (is_test(path) and names & stem_words) or copied:
            corpus.left_out.append(path.as_posix())
        else:
            (corpus.tests if is_test(path) else corpus.library)[path.as_posix()] = text
    return corpus
