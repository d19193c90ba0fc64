"""What a native engine can be told.

Owns defaults and their units. The environment of OpenMP is not here because it must stand before
torch is loaded: the process that hosts an engine sets ``OMP_WAIT_POLICY=PASSIVE`` and
``GOMP_SPINCOUNT=0`` first thing. With the default (threads that spin at each barrier) one busy
neighbour on a shared machine turns a 30 microsecond product into a whole scheduling quantum.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """Settings of one native engine.

    Attributes:
        model: a local Hugging Face directory with ``config.json`` and safetensors.
        dtype: auto, float32 or bfloat16. Auto is the checkpoint's type, but float32 on a CPU without
            the fused kernel: only that and float32 give the same tokens alone as in a batch.
        device: cpu, cuda or cuda:N; auto takes a GPU if there is one.
        kv_memory_bytes: budget of the KV cache, unless ``kv_blocks`` says how many pages there are.
        block_tokens: tokens of a KV page, which is one block of the hash chain.
        max_batch: sequences that run at once.
        max_batched_tokens: tokens of one step, prefill and decode together.
        max_waiting: requests that may wait for admission.
        max_embed_tokens: of one text to embed, at most the context; 0 embeds nothing. KV pages for so
            many tokens lie beside the budget, untouched (on a CPU: unallocated) until they are used.
        max_context: cap on prompt plus output; None for what the model was made for.
        threads: of one torch operation; None leaves torch's own choice.
        speculation: none, ngram (prompt lookup), draft (needs ``draft_model``) or auto: the better of
            what there is. Any kind is used as far as it is measured to help, and changes no output.
            What a constraint leaves no choice about is drafted with any, none included.
        draft_model: directory of a small model with the same tokenizer; its KV shares the budget.
        max_draft_tokens: most tokens drafted for one sequence in one step.
        threads: that compute; None for all CPUs, less one for the event loop if there are over two.
        kernel: auto, fused or eager; auto takes the fused CPU kernel wherever it can be compiled.
        quantization: none or int8; int8 keeps each weight as a byte and computes in ``dtype``.
        adapters: directory of LoRA adapters, each a folder as PEFT saves it; None for none.
        max_adapters: adapters in memory at once; those of running requests cannot be dropped.
        max_adapter_rank: largest rank an adapter may have.
    """

    model: Path
    dtype: str = "auto"
    device: str = "auto"
    kv_memory_bytes: int = 512 << 20
    kv_blocks: int | None = None
    block_tokens: int = 32
    max_batch: int = 32
    max_batched_tokens: int = 512
    max_waiting: int = 256
    max_embed_tokens: int = 2048
    max_context: int | None = None
    threads: int | None = None
    speculation: str = "none"
    draft_model: Path | None = None
    max_draft_tokens: int = 7
    kernel: str = "auto"
    quantization: str = "none"
    adapters: Path | None = None
    max_adapters: int = 16
    max_adapter_rank: int = 256
