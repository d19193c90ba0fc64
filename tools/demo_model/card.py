"""The model cards, written from what a run measured."""

from __future__ import annotations

import json
import platform
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from demo_model.corpus import HELD_OUT_ONE_IN, Corpus
from demo_model.export import put_json, put_text
from demo_model.net import ModelConfig


@dataclass
class Facts:
    """Figures of a run, kept beside the checkpoints so that every part can add its own."""

    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    bits_per_byte: dict[str, dict[str, float]] = field(default_factory=dict)
    acceptance: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, work: Path) -> Facts:
        """Read the figures so far.

        Args:
            work: The run's working folder.
        """
        path = work / "facts.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else cls()

    def save(self, work: Path) -> None:
        """Write the figures."""
        put_json(work / "facts.json", asdict(self))


@dataclass(frozen=True)
class Subject:
    """What a card is about."""

    part: str
    folder: Path
    config: ModelConfig
    parameters: int
    corpus: Corpus
    facts: Facts


_HEADER = """\
---
language: code
library_name: transformers
pipeline_tag: text-generation
license: psf-2.0
---
"""

_INTRODUCTION = {
    "main": """\
# Penstock demo model

A small Llama that completes Python code. It is here so that Penstock can serve, test and
benchmark something real without a download. It is **not a chat model**: it follows no
instructions and knows no facts. Its chat template only lays a conversation out as Python, what
the system and the user say as comments and what the assistant said as code, and the model goes
on from there with whatever Python usually follows.
""",
    "draft": """\
# Penstock demo draft model

The draft for Penstock's demo model in `../demo`: it guesses a few tokens ahead, and the demo
model verifies them in one step (speculative decoding). It has the same tokeniser and was trained
to imitate the demo model. By itself it completes Python code, worse than the demo model does. It
is **not a chat model**.
""",
}

_USE = """\
## Use

```console
$ penstock up                              # serves the demo model
$ penstock up --model DIR_OR_HUB_ID        # serves a real checkpoint instead
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

The tokeniser adds nothing to a prompt. `<|endoftext|>` stands between files in training: put it
first to begin a new file; when the model produces it, the file is over.
"""

_RETRAIN = """\
## Retraining

```console
$ python tools/train_demo_model.py --minutes 82 --draft-minutes 13
```

needs `torch`, `tokenizers` and `safetensors`, and a C++ compiler unless `--no-compile` is given.
It reads nothing but the standard library of the Python that runs it, so another release of
Python gives a slightly different corpus. The budgets are wall-clock time: a busier or slower
machine sees fewer tokens and ends with a worse model. `--resume` goes on after an interruption,
`--only measure` repeats the measurements below, and `--help` tells the rest.
"""

_LICENCE = """\
## Licence and origin

Every training text is part of CPython's standard library, which is under the PSF-2.0 licence.
No other data set and no weights from elsewhere went in; the weights began as random numbers.
The model can repeat passages of that source word for word, and text it repeats stays under
PSF-2.0.
"""


def write_card(subject: Subject) -> None:
    """Write a model's ``README.md``.

    Args:
        subject: The model, and what is known of it.
    """
    sections = [
        _HEADER + _INTRODUCTION[subject.part],
        _architecture(subject),
        _measures(subject),
        _USE.format(folder=f"services/penstock_models/{subject.folder.name}"),
        _training(subject),
        _corpus(subject.corpus),
        _RETRAIN,
        _LICENCE,
    ]
    put_text(subject.folder / "README.md", "\n".join(sections))


def _architecture(subject: Subject) -> str:
    """Describe the model's shape."""
    c = subject.config
    return (
        f"`LlamaForCausalLM`, {subject.parameters:,} parameters in bf16 with the output layer "
        f"tied to the\nembeddings: {c.num_hidden_layers} layers, width {c.hidden_size}, "
        f"{c.num_attention_heads} heads of {c.head_dim} with {c.num_key_value_heads} for keys "
        f"and values, SwiGLU\n{c.intermediate_size} wide. Byte-level BPE with {c.vocab_size:,} "
        f"entries, in which a run of indentation is one token.\nPositions up to "
        f"{c.max_position_embeddings:,}.\n"
    )


def _measures(subject: Subject) -> str:
    """State what was measured."""
    facts, scores = subject.facts, subject.facts.bits_per_byte.get(subject.part, {})
    if not scores:
        return "## Measured\n\nNot measured yet: this model is an early export of a run.\n"
    lines = [
        "## Measured",
        "",
        "Bits per byte of the held-out modules, with the bf16 weights of this directory:",
        "",
        "| window, tokens | bits per byte |",
        "| ---: | ---: |",
        *(f"| {context} | {score:.3f} |" for context, score in scores.items()),
        "",
        "Every file is coded alone, from `<|endoftext|>` on, in windows that slide by half their",
        "width: each token is counted once and sees at least half a window before it, or all of",
        "the file so far. The bits of all tokens are divided by the UTF-8 bytes of all files.",
        "",
    ]
    if facts.acceptance:
        lines += [
            "Speculative decoding with the draft in `../demo_draft`, four tokens drafted for each"
            if subject.part == "main"
            else "Speculative decoding for the model in `../demo`, four tokens drafted for each",
            "verification, 96 tokens after each of 48 prompts of 192 tokens spread evenly over",
            "the held-out modules:",
            "",
            "| decoding | drafted tokens accepted | tokens per verification | verifications |",
            "| :--- | ---: | ---: | ---: |",
            *(
                f"| {label} | {a['rate']:.1%} | {a['tokens_per_step']:.2f} | {a['steps']:,} |"
                for label, a in facts.acceptance.items()
            ),
            "",
            "The share counts all four drafted tokens, also those behind the first refusal.",
            "",
        ]
    return "\n".join(lines)


def _training(subject: Subject) -> str:
    """Tell how the model was trained."""
    run = subject.facts.training[subject.part]
    lesson = (
        "It learnt from the text alone."
        if subject.part == "main"
        else "Nine tenths of its loss is the divergence from the demo model's distribution, one "
        "tenth the text itself."
    )
    text = (
        f"Muon for the layers' matrices, AdamW for the embedding and the norms; "
        f"{run['steps']:,} steps of 8,192 tokens, {run['tokens'] / 1e6:.1f} million tokens or "
        f"{run['passes']:.1f} passes, in {run['minutes']:g} of {run['of_minutes']:g} minutes "
        f"on {run['where']}. Rows grow from 512 tokens to {run['longest_row']:,} as "
        f"the learning rate falls. {lesson} In a pass, library code comes three times and test "
        f"code once."
    )
    return "## Training\n\n" + textwrap.fill(text, 96) + "\n"


def _corpus(corpus: Corpus) -> str:
    """Say what was trained on and what was kept out."""
    library, tests, held = (
        sum(len(text.encode()) for text in part.values()) / 1e6
        for part in (corpus.library, corpus.tests, corpus.held_out)
    )
    text = (
        f"The standard library of Python {platform.python_version()}, read where it is installed, "
        f"without site-packages: {len(corpus.library)} library files ({library:.1f} MB) and "
        f"{len(corpus.tests)} files of its tests ({tests:.1f} MB). Generated files, tables of "
        f"data, fixtures of broken syntax and duplicates are skipped. A top-level module is held "
        f"out when the SHA-256 of its name, `_pydecimal` counted as `decimal`, begins with 64 bits "
        f"divisible by {HELD_OUT_ONE_IN}. Kept out of training with it, "
        f"and not measured on, are its tests, other files that bear its name, and files that "
        f"repeat more than 15 % of a held-out file's long lines."
    )
    modules = f"Held out ({len(corpus.held_out)} files, {held:.2f} MB): " + ", ".join(
        f"`{name}`" for name in corpus.held_out_modules
    )
    left = (
        f"{len(corpus.left_out)} related files neither trained nor measured on; outside their "
        "tests: " + ", ".join(f"`{p}`" for p in corpus.left_out if "test" not in p)
    )
    return (
        "## Corpus\n\n"
        + "\n\n".join(
            textwrap.fill(t + ".", 96, break_on_hyphens=False, break_long_words=False)
            for t in (text.rstrip("."), modules, left)
        )
        + "\n"
    )
