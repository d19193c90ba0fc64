"""OpenVINO GenAI as an engine's process.

    python openvino_engine.py IR_FOLDER {bf16,int8} THREADS {batching,stateful}

Its continuous batching pipeline with prefix caching takes any load. The other pipeline (``stateful``)
serves one prompt at a time and is measured where there is one, since it may be the faster.
"""

import sys

import numpy as np
import openvino as ov
import openvino_genai as genai
from protocol import Load, Run, serve


def _config(new_tokens: int) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = new_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


def _batching(folder: str, properties: dict[str, object]) -> Run:
    scheduling = genai.SchedulerConfig()
    scheduling.cache_size = 2
    scheduling.max_num_seqs = 64
    scheduling.max_num_batched_tokens = 2048
    scheduling.dynamic_split_fuse = True
    scheduling.enable_prefix_caching = True
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduling, "CPU", properties)

    def run(load: Load) -> list[list[int]]:
        prompts = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in load.prompts]
        done = pipeline.generate(prompts, [_config(load.new_tokens)] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in done]

    return run


def _stateful(folder: str, properties: dict[str, object]) -> Run:
    pipeline = genai.LLMPipeline(folder, "CPU", ATTENTION_BACKEND="SDPA", **properties)

    def run(load: Load) -> list[list[int]]:
        config = _config(load.new_tokens)
        return [
            pipeline.generate(ov.Tensor(np.array([prompt], dtype=np.int64)), config).tokens[0]
            for prompt in load.prompts
        ]

    return run


def _start() -> Run:
    folder, precision, threads, kind = sys.argv[1:]
    properties: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": int(threads),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if precision == "int8":
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "32"
    return (_batching if kind == "batching" else _stateful)(folder, properties)


if __name__ == "__main__":
    serve(_start)
