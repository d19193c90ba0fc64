"""``python -m penstock_worker``: one model behind gRPC, until SIGTERM.

Builds everything and passes it on. What torch reads from the environment when it is loaded is set
here first, so nothing at the top of this file may import it.
"""

import asyncio
import logging
import os
import sys
from functools import partial
from pathlib import Path

from penstock_core.errors import PenstockError
from penstock_core.ids import new_id
from penstock_core.lifecycle import fail, run
from penstock_core.settings import SettingsError
from penstock_core.telemetry import logs
from penstock_core.telemetry import setup as telemetry
from penstock_engine.api import Engine
from penstock_text.chat import ChatTemplate
from penstock_text.source import own_draft, resolve_model, served_name
from penstock_text.tokenizer import Tokenizer
from penstock_worker.arguments import UsageError, parse_arguments
from penstock_worker.settings import WorkerSettings
from penstock_worker.worker import Options, Text, Worker

SERVICE = "penstock-worker"
_USAGE = "python -m penstock_worker [--engine native|trtllm] [--config FILE]"
logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run the process; returns its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--help"]:
        sys.stdout.write(f"{_USAGE}\n\n{WorkerSettings.describe()}\n")
        return 0
    try:
        chosen = parse_arguments(given)
        settings = WorkerSettings.from_environment().model_copy(update=chosen)
    except (UsageError, SettingsError) as error:
        return fail(str(error))
    logs.configure(SERVICE)
    calm_threads(settings.threads)
    try:
        settings.price()  # before the model is loaded, which takes a while
        settings.tls()
        engine, text = _load(settings)
    except SettingsError as error:
        return fail(str(error))
    except (PenstockError, OSError) as error:
        what = settings.config if settings.engine == "trtllm" else settings.model
        logger.error("cannot serve %s: %s", what, error)
        return 1

    options = _options(settings, text.source)

    async def serve(stop: asyncio.Event) -> None:
        await Worker(engine, text, options).run(stop)

    with telemetry.start(
        SERVICE,
        instance=options.worker_id,
        metrics_listen=settings.metrics_listen,
        tls=options.tls,
    ) as measuring:
        if measuring.metrics_port:
            logger.info("metrics on port %d", measuring.metrics_port)
        return run(serve)


def calm_threads(threads: int) -> None:
    """Let idle OpenMP threads sleep: spinning ones starve the neighbours on a shared machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = threads or cpus
    for name, value in (
        ("OMP_WAIT_POLICY", "PASSIVE"),
        ("GOMP_SPINCOUNT", "0"),
        ("KMP_BLOCKTIME", "0"),
        ("OMP_NUM_THREADS", str(count)),
    ):
        os.environ.setdefault(name, value)


def _options(settings: WorkerSettings, model: str) -> Options:
    return Options(
        worker_id=settings.id or new_id("worker").replace("_", "-"),
        models=settings.names(served_name(model)),
        listen=settings.listen,
        advertise=settings.advertise,
        registry_url=settings.registry_url,
        lease_secret=settings.lease_secret.encode(),
        tls=settings.tls(),
        grace_s=settings.grace_s,
        response_cache_bytes=settings.response_cache_mib << 20,
        response_cache_ttl_s=settings.response_cache_ttl_s,
        zone=settings.zone,
        pool=settings.pool,
        cost_class=settings.cost_class,
        price=settings.price(),
        metered_tenants=settings.metered_tenants,
    )


def _load(settings: WorkerSettings) -> tuple[Engine, Text]:
    if settings.engine == "trtllm":
        from penstock_worker.trtllm import load_trtllm  # noqa: PLC0415 - not needed for the other

        return load_trtllm(settings)
    path = resolve_model(settings.model, weights=True)
    # Loaded before torch is: a bad directory is told at once.
    text = Text(Tokenizer.load(path), ChatTemplate.load(path), settings.model)
    draft = settings.draft_model or own_draft(settings.model)
    drafts = settings.speculation in {"draft", "auto"} and draft
    # Imported here, behind the environment that torch reads: it takes seconds.
    from penstock_engine.native.engine import NativeEngine  # noqa: PLC0415
    from penstock_engine.native.settings import NativeSettings  # noqa: PLC0415
    from penstock_engine.native.structured.vocabulary import Vocabulary  # noqa: PLC0415

    chosen = NativeSettings(
        model=path,
        dtype=settings.dtype,
        device=settings.device,
        kv_memory_bytes=settings.kv_memory_mib << 20,
        max_batch=settings.max_batch,
        max_batched_tokens=settings.max_batched_tokens,
        max_waiting=settings.max_waiting,
        max_embed_tokens=settings.max_embed_tokens,
        max_context=settings.max_context_tokens or None,
        threads=settings.threads or None,
        speculation=settings.speculation,
        draft_model=resolve_model(draft, weights=True) if drafts else None,
        max_draft_tokens=settings.max_draft_tokens,
        kernel=settings.kernel,
        quantization=settings.quantization,
        adapters=Path(settings.adapters) if settings.adapters else None,
        max_adapters=settings.max_adapters,
        max_adapter_rank=settings.max_adapter_rank,
    )
    tokenizer = text.tokenizer
    tokens = [tokenizer.text_bytes(i) for i in range(tokenizer.vocab_size)]
    encode = partial(tokenizer.encode, add_special_tokens=False)
    return NativeEngine(chosen, Vocabulary(tokens, encode)), text


if __name__ == "__main__":
    sys.exit(main())
