"""Train the demo model and its draft on the Python standard library's own source."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from demo_model.batches import Batches, Tokens
from demo_model.card import Facts, Subject, write_card
from demo_model.corpus import Corpus, load_corpus
from demo_model.evaluate import acceptance, bits_per_byte
from demo_model.export import export_model, import_model, put
from demo_model.net import Llama, ModelConfig
from demo_model.training import Plan, Trainer
from demo_model.vocabulary import END, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
LIBRARY_REPEATS = 3
"""How often library code comes for each time test code does: it is what is measured."""
DRAFT_LENGTH = 4
VOCABULARY = 4096
MAIN = ModelConfig(VOCABULARY, intermediate_size=640, num_hidden_layers=6)
DRAFT = ModelConfig(
    VOCABULARY,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The learning rate falls to nothing at the end of each budget, so a longer run "
        "is better from about half-way on, not from the start. An interrupted run goes on with "
        "--resume; a usable model is exported after two minutes and every few minutes then.",
    )
    add = parser.add_argument
    add("--minutes", type=float, default=82.0, help="budget for the main model (%(default)s)")
    add("--draft-minutes", type=float, default=13.0, help="budget for the draft (%(default)s)")
    add("--threads", type=int, default=os.cpu_count(), help="processor threads (%(default)s)")
    add("--device", default="auto", help="cpu, cuda, or auto: cuda if there is one (%(default)s)")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16"),
        help="of the matrix products; auto: bfloat16 on cuda, float32 on cpu")  # fmt: skip
    add("--out", type=Path, default=ROOT / "services" / "penstock_models",
        help="folder that gets demo/ and demo_draft/")  # fmt: skip
    add("--work", type=Path, default=ROOT / "build" / "demo-model",
        help="folder of the tokeniser and the checkpoints")  # fmt: skip
    add("--resume", action="store_true", help="go on from the checkpoints in --work")
    add("--no-compile", action="store_true", help="do without torch.compile (needs a C++ compiler)")
    add("--only", choices=("main", "draft", "measure"), help="run one part, then stop")
    add("--seed", type=int, default=1, help="of the weights and the order of rows (%(default)s)")
    return parser.parse_args()


class Session:
    """What the parts of a run share: corpus, tokeniser, devices and folders."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the corpus and make or reread the tokeniser.

        Args:
            args: The command line.
        """
        self.args = args
        cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
        self.device = torch.device("cuda" if cuda else "cpu")
        bf16 = args.dtype == "bfloat16" or (args.dtype == "auto" and cuda)
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.corpus: Corpus = load_corpus()
        self.tokenizer = self._tokenizer()
        self.library = self._encode(self.corpus.library)
        self.tests = self._encode(self.corpus.tests)
        self.held_out = self._encode(self.corpus.held_out)
        self.held_out_bytes = sum(len(text.encode()) for text in self.corpus.held_out.values())
        self.folders = {"main": args.out / "demo", "draft": args.out / "demo_draft"}

    def _tokenizer(self) -> Tokenizer:
        """Return the tokeniser, learnt from the training texts alone."""
        path: Path = self.args.work / "tokenizer.json"
        if not (path.exists() and (self.args.resume or self.args.only in ("draft", "measure"))):
            texts = [*self.corpus.library.values(), *self.corpus.tests.values()]
            tokenizer = train_tokenizer(texts, VOCABULARY)
            put(path, lambda beside: tokenizer.save(str(beside)))
        return Tokenizer.from_file(str(path))

    def _encode(self, texts: dict[str, str]) -> list[Tokens]:
        """Return every text's tokens, the separator first."""
        end = self.tokenizer.token_to_id(END)
        encodings = self.tokenizer.encode_batch(list(texts.values()))
        return [np.array([end, *encoding.ids], dtype=np.int32) for encoding in encodings]

    def batches(self, seed: int) -> Batches:
        """Return the training rows in an order of their own."""
        repeats = [LIBRARY_REPEATS] * len(self.library) + [1] * len(self.tests)
        return Batches([*self.library, *self.tests], repeats, seed)

    def train(self, part: str, config: ModelConfig, plan: Plan, teacher: Llama | None) -> None:
        """Train one model and leave it, with its figures, in its folder.

        Args:
            part: ``main`` or ``draft``.
            config: Its shape.
            plan: How to train it.
            teacher: A model to imitate, or None.
        """
        torch.manual_seed(self.args.seed)
        model = Llama(config, self.dtype).to(self.device)
        trainer = Trainer(model, self.batches(self.args.seed + (part == "draft")), plan, teacher)
        if self.args.resume:
            trainer.resume()
        print(f"{part}: {model.parameter_count():,} parameters", flush=True)
        trainer.run(not self.args.no_compile, self.export)

    def export(self, trainer: Trainer) -> float:
        """Export a model and return a quick measure: one file in two, short windows."""
        part = trainer.plan.name
        export_model(trainer.model, self.tokenizer, self.folders[part])
        facts = Facts.load(self.args.work)
        facts.training[part] = {
            "minutes": round(trainer.elapsed / 60, 1),
            "of_minutes": round(trainer.plan.seconds / 60, 1),
            "steps": trainer.step,
            "tokens": trainer.tokens,
            "passes": round(trainer.batches.passes, 2),
            "longest_row": trainer.plan.stages[-1][1],
            "where": self.where(),
        }
        facts.bits_per_byte.pop(part, None)
        facts.acceptance.clear()
        facts.save(self.args.work)
        self.card(part, trainer.model, facts)
        files, texts = self.held_out[::2], list(self.corpus.held_out.values())[::2]
        size = sum(len(text.encode()) for text in texts)
        return bits_per_byte(trainer.model, files, size, 512, 512)

    def measure(self) -> None:
        """Measure the exported models and write the figures into their cards."""
        facts = Facts.load(self.args.work)
        models = {part: import_model(folder).to(self.device).eval()
                  for part, folder in self.folders.items()
                  if (folder / "model.safetensors").exists()}  # fmt: skip
        for part, model in models.items():
            for context in (1024, 2048, 4096):
                score = bits_per_byte(
                    model, self.held_out, self.held_out_bytes, context, context // 2
                )
                facts.bits_per_byte.setdefault(part, {})[str(context)] = round(score, 4)
                print(f"{part}: {score:.4f} bits per byte, windows of {context}", flush=True)
        if "draft" in models:
            prompts = self.prompts()
            for label, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
                found = acceptance(
                    models["main"], models["draft"], prompts, DRAFT_LENGTH, 96, temperature
                )
                facts.acceptance[label] = vars(found)
                print(f"acceptance, {label}: {found}", flush=True)
        facts.save(self.args.work)
        for part, model in models.items():
            self.card(part, model, facts)

    def card(self, part: str, model: Llama, facts: Facts) -> None:
        """Write the card of one model."""
        count = model.parameter_count()
        folder = self.folders[part]
        write_card(Subject(part, folder, model.config, count, self.corpus, facts))

    def where(self) -> str:
        """Say in words what the training runs on."""
        if self.device.type == "cuda":
            return "one GPU"
        return f"{self.args.threads} processor cores, shared with other work"

    def prompts(self, count: int = 48, length: int = 192) -> list[Tokens]:
        """Return beginnings taken evenly from the held-out modules."""
        stream = np.concatenate(self.held_out)
        starts = np.linspace(0, len(stream) - length, count).astype(int)
        return [stream[start : start + length] for start in starts]


def main() -> int:
    """Train both models and measure them."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    session = Session(args)
    plan = Plan("main", args.minutes * 60, args.work / "main.pt")
    if args.only in (None, "main"):
        session.train("main", MAIN, plan, None)
    if args.only in (None, "draft"):
        teacher = import_model(session.folders["main"]).to(session.device)
        teacher.compute_dtype = session.dtype
        draft = replace(
            plan,
            name="draft",
            seconds=args.draft_minutes * 60,
            checkpoint=args.work / "draft.pt",
            stages=((0.7, 512), (0.9, 1024), (1.0, 2048)),
        )
        session.train("draft", DRAFT, draft, teacher.requires_grad_(False))
    session.measure()
    return 0


if __name__ == "__main__":
    sys.exit(main())
