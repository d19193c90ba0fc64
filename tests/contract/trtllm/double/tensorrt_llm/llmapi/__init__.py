"""The classes that the package exports here."""

from tensorrt_llm._classes import KNOWN, CompletionOutput, RequestError
from tensorrt_llm._contract import CONTRACT
from tensorrt_llm._results import RequestOutput

for _name, _spec in CONTRACT["classes"].items():
    if _name in KNOWN and _spec.get("module") == "tensorrt_llm.llmapi":
        globals()[_name] = KNOWN[_name]
LoRARequest = KNOWN["LoRARequest"]
__all__ = ["CompletionOutput", "LoRARequest", "RequestError", "RequestOutput"]
