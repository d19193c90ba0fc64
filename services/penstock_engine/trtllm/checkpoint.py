"""Facts of a checkpoint that must be known before the engine is built, from its small files.

Owns what follows from them for the settings. Reads JSON, loads no weights and no package.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from penstock_core.errors import InvalidRequest, NotFound
from penstock_core.settings import SettingsError
from penstock_engine.speculative.pairing import check_pair
from penstock_engine.trtllm.settings import TrtLlmSettings
from penstock_engine.trtllm.speculation import DraftTarget, Eagle3, Mtp

_DEFAULT_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory.

    Attributes:
        path: where it is.
        model_type: its family, as the config names it.
        max_context: tokens it was made for.
        eos_token_ids: every token that one of its files names as an end.
        num_mtp_layers: layers that predict further tokens.
    """

    path: Path
    model_type: str
    vocab_size: int
    max_context: int
    eos_token_ids: frozenset[int]
    num_mtp_layers: int = 0

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Read ``config.json`` and ``generation_config.json``.

        Raises:
            NotFound: there is no config.json.
            InvalidRequest: it is no JSON object, or tells no vocabulary.
        """
        if not (path / "config.json").is_file():
            raise NotFound(f"{path} holds no config.json")
        config = _object(path / "config.json")
        # Models that see keep the language model's figures one level down.
        nested = config.get("text_config")
        text = {**config, **nested} if isinstance(nested, dict) else config
        vocab = text.get("vocab_size")
        if not isinstance(vocab, int) or vocab < 1:
            raise InvalidRequest(f"{path}/config.json tells no vocab_size", field="model")
        context = text.get("max_position_embeddings")
        layers = text.get("num_nextn_predict_layers")
        generation = _object(path / "generation_config.json")
        return cls(
            path=path,
            model_type=str(config.get("model_type", "")),
            vocab_size=vocab,
            max_context=context if isinstance(context, int) else _DEFAULT_CONTEXT,
            eos_token_ids=_ids(text.get("eos_token_id")) | _ids(generation.get("eos_token_id")),
            num_mtp_layers=layers if isinstance(layers, int) else 0,
        )


def check(settings: TrtLlmSettings, checkpoint: Checkpoint) -> None:
    """Hold the settings against the checkpoint.

    Raises:
        SettingsError: they ask for what it cannot do.
        InvalidRequest: a draft model in a directory has another vocabulary.
    """
    kind = settings.speculation
    if isinstance(kind, Mtp) and not checkpoint.num_mtp_layers:
        raise SettingsError(
            f"speculation mtp: {checkpoint.path} has no layers that predict further tokens; "
            "use eagle3 with a head for this model, or ngram"
        )
    if isinstance(kind, DraftTarget | Eagle3):
        _check_drafter(kind, checkpoint)
    _check_adapters(settings)
    is_harmony = checkpoint.model_type == "gpt_oss"
    if isinstance(kind, Eagle3) and is_harmony and settings.guided_decoding is not None:
        raise SettingsError(
            "guided decoding with eagle3 leaks special tokens of gpt-oss "
            "(https://github.com/NVIDIA/TensorRT-LLM/issues/9256): set guided_decoding to null"
        )
    if settings.max_seq_len is not None and settings.max_seq_len > checkpoint.max_context:
        raise SettingsError(
            f"max_seq_len {settings.max_seq_len} is more than the {checkpoint.max_context} tokens "
            "that the model was made for"
        )
    if not settings.scheduler.chunked_prefill and context(settings, checkpoint) > (
        settings.max_num_tokens
    ):
        raise SettingsError(
            f"without chunked prefill max_num_tokens {settings.max_num_tokens} caps the prompt: "
            "set scheduler.chunked_prefill to true, or max_seq_len to no more than that"
        )


def _check_drafter(kind: DraftTarget | Eagle3, checkpoint: Checkpoint) -> None:
    """A hub id is left to the package, which downloads it."""
    path = Path(kind.draft_model)
    if kind.draft_model.startswith(("/", ".", "~")) and not path.is_dir():
        raise SettingsError(f"speculation.draft_model: there is no directory {path}")
    if isinstance(kind, DraftTarget) and path.is_dir():
        draft = Checkpoint.read(path)
        check_pair(checkpoint.path, draft.path, (checkpoint.vocab_size, draft.vocab_size))


def _check_adapters(settings: TrtLlmSettings) -> None:
    """The package looks at them when the first request names one, and fails that."""
    lora = settings.lora
    for adapter in lora.adapters if lora is not None else ():
        if not adapter.path.is_dir():
            raise SettingsError(f"lora: adapter {adapter.name}: no directory {adapter.path}")
        rank = _object(adapter.path / "adapter_config.json").get("r")
        if lora is not None and isinstance(rank, int) and rank > lora.max_rank:
            raise SettingsError(
                f"lora: adapter {adapter.name} has rank {rank}: set lora.max_rank to at least that"
            )


def context(settings: TrtLlmSettings, checkpoint: Checkpoint) -> int:
    """Most tokens of prompt and output together."""
    return settings.max_seq_len or checkpoint.max_context


def _object(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidRequest(f"{path} is no JSON: {error}", field="model") from error
    if not isinstance(content, dict):
        raise InvalidRequest(f"{path} holds no JSON object", field="model")
    return content


def _ids(value: object) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(v for v in values if isinstance(v, int) and not isinstance(v, bool))
