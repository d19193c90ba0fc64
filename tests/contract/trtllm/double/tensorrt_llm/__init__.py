"""A stand-in for TensorRT-LLM, built from ``contract.json``; see SOURCE.md."""

from tensorrt_llm._classes import KNOWN
from tensorrt_llm._contract import CONTRACT
from tensorrt_llm._llm import LLM

__version__ = CONTRACT["version"]
SamplingParams = KNOWN["SamplingParams"]
DisaggregatedParams = KNOWN["DisaggregatedParams"]
__all__ = ["LLM", "DisaggregatedParams", "SamplingParams"]
