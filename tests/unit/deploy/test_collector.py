"""The collector's configuration holds only what its parts know: it reads it strictly, or not at all.

Sources: ``config.schema.yaml`` of tailsamplingprocessor (opentelemetry-collector-contrib),
``config.go`` of memorylimiter, batchprocessor, otlpreceiver and otlpexporter (opentelemetry-collector).
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
CONFIGURATION = DEPLOY / "telemetry/collector.yaml"
COLLECTOR = shutil.which("otelcol-contrib") or shutil.which("otelcol")

Duration = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?(ns|us|ms|s|m|h))+$")]
Percent = Annotated[int, Field(gt=0, le=100)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Endpoint(Strict):
    endpoint: Annotated[str, Field(pattern=r"^[\w.-]+:\d+$")]


class Protocols(Strict):
    grpc: Endpoint


class Otlp(Strict):
    protocols: Protocols


class ClientTls(Strict):
    insecure: bool = False


class OtlpGrpc(Endpoint):
    tls: ClientTls


class Nothing(Strict):
    pass


class MemoryLimiter(Strict):
    check_interval: Duration
    limit_percentage: Percent
    spike_limit_percentage: Percent

    @model_validator(mode="after")
    def _spike_is_less_than_the_limit(self) -> "MemoryLimiter":
        if self.spike_limit_percentage >= self.limit_percentage:
            raise ValueError("the spike must be less than the limit")
        return self


class StatusCodes(Strict):
    status_codes: Annotated[list[Literal["ERROR", "OK", "UNSET"]], Field(min_length=1)]


class Latency(Strict):
    threshold_ms: Annotated[int, Field(ge=0)]
    upper_threshold_ms: int = 0


class Probabilistic(Strict):
    sampling_percentage: Annotated[float, Field(ge=0, le=100)]
    hash_salt: str = ""


class Failed(Strict):
    name: str
    type: Literal["status_code"]
    status_code: StatusCodes


class Slow(Strict):
    name: str
    type: Literal["latency"]
    latency: Latency


class Some(Strict):
    name: str
    type: Literal["probabilistic"]
    probabilistic: Probabilistic


Policy = Annotated[Failed | Slow | Some, Field(discriminator="type")]


class TailSampling(Strict):
    policies: Annotated[list[Policy], Field(min_length=1)]
    decision_wait: Duration = "30s"
    decision_wait_after_root_received: Duration = "0s"
    num_traces: int = 50_000
    expected_new_traces_per_sec: int = 0
    sample_on_first_match: bool = False

    @model_validator(mode="after")
    def _names_differ(self) -> "TailSampling":
        if len({policy.name for policy in self.policies}) < len(self.policies):
            raise ValueError("two policies share a name")
        return self


# ``otlp`` of the exporters is a deprecated alias since 0.144.
KNOWN: dict[str, dict[str, type[Strict]]] = {
    "receivers": {"otlp": Otlp},
    "processors": {
        "memory_limiter": MemoryLimiter,
        "tail_sampling": TailSampling,
        "batch": Nothing,
    },
    "exporters": {"otlp_grpc": OtlpGrpc, "nop": Nothing},
}


def configuration() -> dict[str, Any]:
    told = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    assert isinstance(told, dict)
    return told


def check(told: dict[str, Any]) -> None:
    """Raise ValueError for what the collector would refuse."""
    if extra := set(told) - {*KNOWN, "service"}:
        raise ValueError(f"no sections: {extra}")
    for section, parts in KNOWN.items():
        for name, settings in told[section].items():
            kind = name.partition("/")[0]
            if kind not in parts:
                raise ValueError(f"none of the {section}: {name}")
            parts[kind].model_validate(settings or {})
    pipelines = told["service"]["pipelines"]
    for signal, pipeline in pipelines.items():
        if not re.fullmatch(r"(traces|metrics|logs)(/\w+)?", signal):
            raise ValueError(f"no signal: {signal}")
        for section, names in pipeline.items():
            if missing := set(names) - set(told[section]):
                raise ValueError(f"undefined {section}: {missing}")
    for section in KNOWN:
        used = {name for pipeline in pipelines.values() for name in pipeline.get(section, ())}
        if idle := set(told[section]) - used:
            raise ValueError(f"unused {section}: {idle}")


def test_the_collector_would_read_its_configuration() -> None:
    told = configuration()
    check(told)

    processors = told["service"]["pipelines"]["traces"]["processors"]
    assert processors[0] == "memory_limiter", "it must be able to refuse before anything is kept"
    assert processors.index("tail_sampling") < processors.index("batch")


def test_it_listens_where_processes_send_and_sends_where_jaeger_is() -> None:
    told = configuration()
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    endpoint = compose["x-telemetry"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    port = told["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]

    assert endpoint.endswith(f"-http://collector:{port}}}")
    service, _, port = told["exporters"]["otlp_grpc/jaeger"]["endpoint"].partition(":")
    assert service in compose["services"]
    assert port == "4317"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("type: latency,", "type: slow,"),
        ("threshold_ms", "treshold_ms"),
        ("[ERROR]", "[STATUS_CODE_ERROR]"),
        ("decision_wait: 30s", "decision_wait: 30"),
        ("otlp_grpc/jaeger", "otlp/jaeger"),
        ("spike_limit_percentage: 20", "spike_limit_percentage: 90"),
        ("exporters: [nop]", "exporters: [none]"),
        ("name: slow", "name: failed"),
    ],
)
def test_mistakes_are_found(before: str, after: str) -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert before in text
    with pytest.raises((ValueError, ValidationError)):
        check(yaml.safe_load(text.replace(before, after)))


@pytest.mark.skipif(COLLECTOR is None, reason="no collector on PATH")
def test_a_real_collector_accepts_it() -> None:
    assert COLLECTOR is not None
    done = subprocess.run(
        [COLLECTOR, "validate", "--config", CONFIGURATION], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
