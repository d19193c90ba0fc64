"""Where LoraConfig lives."""

from tensorrt_llm._classes import LoraConfig

__all__ = ["LoraConfig"]
