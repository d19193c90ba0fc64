"""The TensorRT-LLM engine: NVIDIA GPUs behind the ``Engine`` protocol, by the package's ``LLM`` API."""
