"""llama.cpp as an engine's process, through llama-cpp-python's C interface.

    python llama_cpp_engine.py FILE.gguf THREADS

The fastest way it offers: one batch over all sequences a step, prompts packed into batches of 2,048
tokens, flash attention, its own greedy sampler. Prompts that share a prefix share its cells: the
prefix is computed once and copied to the other sequences, as a program that knows its prompts can.
"""

import sys
from collections.abc import Sequence

import llama_cpp as C  # noqa: N812
import numpy as np
from protocol import Load, Run, serve

_BATCH = 2048
_SEQUENCES = 32
_CELLS = 16384


class Engine:
    """A loaded model, one context, one batch that is filled again and again."""

    def __init__(self, path: str, threads: int) -> None:
        C.llama_backend_init()
        model_params = C.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = C.llama_model_load_from_file(path.encode(), model_params)
        params = C.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = _CELLS, _BATCH, 512
        params.n_seq_max = _SEQUENCES
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        params.kv_unified = True
        self.context = C.llama_init_from_model(self.model, params)
        self.memory = C.llama_get_memory(self.context)
        self.batch = C.llama_batch_init(_BATCH, 0, 1)
        self.sampler = C.llama_sampler_init_greedy()
        shape = (_BATCH,)
        self.token = np.ctypeslib.as_array(self.batch.token, shape)
        self.pos = np.ctypeslib.as_array(self.batch.pos, shape)
        self.count = np.ctypeslib.as_array(self.batch.n_seq_id, shape)
        self.wanted = np.ctypeslib.as_array(self.batch.logits, shape)
        self.seq = [np.ctypeslib.as_array(self.batch.seq_id[i], (1,)) for i in range(_BATCH)]
        self.size = 0

    def put(self, tokens: Sequence[int], position: int, sequence: int) -> None:
        """Add tokens of a sequence to the batch."""
        end = self.size + len(tokens)
        self.token[self.size : end] = tokens
        self.pos[self.size : end] = range(position, position + len(tokens))
        self.count[self.size : end] = 1
        self.wanted[self.size : end] = 0
        for i in range(self.size, end):
            self.seq[i][0] = sequence
        self.size = end

    def compute(self) -> None:
        """Run the batch and empty it."""
        self.batch.n_tokens = self.size
        assert C.llama_decode(self.context, self.batch) == 0
        self.size = 0

    def best(self, row: int) -> int:
        """The best token of a row of the last batch."""
        return int(C.llama_sampler_sample(self.sampler, self.context, row))

    def run(self, load: Load) -> list[list[int]]:
        """Serve a load."""
        C.llama_memory_clear(self.memory, False)
        if load.shared:
            for start in range(0, load.shared, _BATCH):
                self.put(load.prompts[0][start : min(load.shared, start + _BATCH)], start, 0)
                self.compute()
            for sequence in range(1, len(load.prompts)):
                C.llama_memory_seq_cp(self.memory, 0, sequence, 0, load.shared)
        outputs = self.prefill(load)
        for step in range(load.new_tokens - 1):
            for sequence, prompt in enumerate(load.prompts):
                self.put([outputs[sequence][-1]], len(prompt) + step, sequence)
            self.wanted[: self.size] = 1
            rows = self.size
            self.compute()
            for row in range(rows):
                outputs[row].append(self.best(row))
        return outputs

    def prefill(self, load: Load) -> list[list[int]]:
        """The first token of each prompt, whose shared part is computed already."""
        outputs: list[list[int]] = []
        rows: list[int] = []
        for sequence, prompt in enumerate(load.prompts):
            rest = prompt[load.shared :]
            if self.size + len(rest) > _BATCH:
                outputs += self.flush(rows)
            self.put(rest, load.shared, sequence)
            rows.append(self.size - 1)
        return outputs + self.flush(rows)

    def flush(self, rows: list[int]) -> list[list[int]]:
        """Compute the batch; the best tokens of ``rows``, which are forgotten."""
        self.wanted[rows] = 1
        self.compute()
        found = [[self.best(row)] for row in rows]
        rows.clear()
        return found


def _start() -> Run:
    return Engine(sys.argv[1], int(sys.argv[2])).run


if __name__ == "__main__":
    serve(_start)
