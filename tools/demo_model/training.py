"""The training loop: a schedule driven by the clock, checkpoints and early exports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo_model.batches import Batches
from demo_model.export import put
from demo_model.net import Llama, distillation_loss, next_token_loss
from demo_model.optimizer import Optimizer

Loss = Callable[[Tensor], Tensor]

# Most of the time goes to short rows, which are the cheapest way to learn the language; what
# lies further back is learnt at the end. (Share of the budget, tokens in a row.)
STAGES = ((0.65, 512), (0.85, 1024), (0.96, 2048), (1.0, 4096))


@dataclass(frozen=True)
class Plan:
    """How one model is trained."""

    name: str
    seconds: float
    checkpoint: Path
    matrix_rate: float = 0.025
    other_rate: float = 0.004
    decay: float = 0.05
    warmup: float = 0.01
    flat: float = 0.35
    batch_tokens: int = 8192
    stages: tuple[tuple[float, int], ...] = STAGES
    report_seconds: float = 15.0
    first_export_seconds: float = 120.0
    export_seconds: float = 270.0


def learning_rate(plan: Plan, progress: float) -> float:
    """Return the schedule's factor: up, flat, then in a straight line to almost nothing.

    Args:
        plan: Says where the parts begin.
        progress: Share of the budget used up.
    """
    if progress < plan.warmup:
        return max(0.02, progress / plan.warmup)
    if progress < plan.flat:
        return 1.0
    return max(0.01, (1 - progress) / (1 - plan.flat))


def context_at(plan: Plan, progress: float) -> int:
    """Return the length of a row at this point of the budget."""
    return next((length for until, length in plan.stages if progress < until), plan.stages[-1][1])


class Trainer:
    """Trains one model until its budget is spent."""

    def __init__(self, model: Llama, batches: Batches, plan: Plan, teacher: Llama | None) -> None:
        """Set the run up from the beginning.

        Args:
            model: The model to train.
            batches: Where its rows come from.
            plan: How to go about it.
            teacher: A model to imitate, or None to learn from the text alone.
        """
        self.model = model
        self.batches = batches
        self.plan = plan
        self.teacher = teacher
        self.optimizer = Optimizer(model, plan.matrix_rate, plan.other_rate, plan.decay)
        self.elapsed = 0.0
        self.step = 0
        self.tokens = 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "elapsed": self.elapsed,
            "step": self.step,
            "tokens": self.tokens,
        }

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one.

        Returns:
            Whether there was.
        """
        if not self.plan.checkpoint.exists():
            return False
        state = torch.load(self.plan.checkpoint, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        self.elapsed, self.step, self.tokens = state["elapsed"], state["step"], state["tokens"]
        print(f"{self.plan.name}: resumed at step {self.step}, {self.elapsed:.0f} s", flush=True)
        return True

    def loss_function(self, compiled: bool) -> Loss:
        """Return the function from a batch of tokens to its loss.

        Args:
            compiled: Fuse it with ``torch.compile``.
        """
        student: Any = torch.compile(next_token_loss, dynamic=False) if compiled else None
        if self.teacher is None:
            plain = student or next_token_loss
            return lambda tokens: plain(self.model, tokens)
        teacher: Any = torch.compile(self.teacher, dynamic=False) if compiled else self.teacher
        distil: Any = torch.compile(distillation_loss, dynamic=False) if compiled else None
        imitate = distil or distillation_loss

        def loss(tokens: Tensor) -> Tensor:
            with torch.no_grad():
                logits = teacher(tokens[:, :-1])
            out: Tensor = imitate(self.model, tokens, logits, 0.9)
            return out

        return loss

    def run(self, compiled: bool, export: Callable[[Trainer], float]) -> None:
        """Train until the budget is spent.

        Args:
            compiled: Fuse the loss with ``torch.compile``.
            export: Called now and then, and returns held-out bits per byte.
        """
        plan, loss_of = self.plan, self.loss_function(compiled)
        device = self.model.embed_tokens.device
        began = time.monotonic() - self.elapsed
        reported, reported_tokens, losses = self.elapsed, self.tokens, list[float]()
        next_export = max(plan.first_export_seconds, self.elapsed + 60)
        while self.elapsed < plan.seconds:
            progress = self.elapsed / plan.seconds
            context = context_at(plan, progress)
            batch = self.batches.take(plan.batch_tokens // context, context).to(device)
            loss = loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step(learning_rate(plan, progress))
            losses.append(loss.item())
            self.step, self.tokens = self.step + 1, self.tokens + batch.shape[0] * context
            self.elapsed = time.monotonic() - began
            if self.elapsed - reported >= plan.report_seconds:
                rate = (self.tokens - reported_tokens) / (self.elapsed - reported)
                self.report(sum(losses) / len(losses), rate, context)
                reported, reported_tokens, losses = self.elapsed, self.tokens, []
            if self.elapsed >= next_export:
                self.save(export)
                self.elapsed = time.monotonic() - began
                reported, reported_tokens = self.elapsed, self.tokens
                next_export = self.elapsed + plan.export_seconds
        self.save(export)

    def save(self, export: Callable[[Trainer], float]) -> None:
        """Write a checkpoint, export the model and say how good it is."""
        put(self.plan.checkpoint, lambda path: torch.save(self.state_dict(), path))
        score = export(self)
        print(f"{self.plan.name}: {score:.4f} held-out bits per byte (quick)", flush=True)

    def report(self, loss: float, rate: float, context: int) -> None:
        """Print a progress line."""
        left = max(0.0, self.plan.seconds - self.elapsed)
        print(
            f"{self.plan.name}: step {self.step} loss {loss:.4f} {rate:.0f} tokens/s "
            f"rows of {context} passes {self.batches.passes:.2f} "
            f"{self.elapsed / 60:.1f} min, {left / 60:.1f} min left",
            flush=True,
        )
