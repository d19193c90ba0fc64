"""Policies by name."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from penstock_core.errors import InvalidRequest
from penstock_router.admission.ticket import AdmissionParams
from penstock_router.policy.cost import CostParams
from penstock_router.simulate import peers
from penstock_router.simulate.board import AtOnce
from penstock_router.simulate.engine import EngineModel
from penstock_router.simulate.fleet import Policy
from penstock_router.simulate.penstock import PenstockPolicy

_PEERS: dict[str, tuple[type[AtOnce], bool]] = {  # whether routed blocks count as cached at once
    "round-robin": (peers.RoundRobin, False),
    "random": (peers.Chance, False),
    "least-loaded": (peers.LeastLoaded, False),
    "power-of-two": (peers.PowerOfTwo, False),
    "smg": (peers.SmgEvents, False),
    "smg-approximate": (peers.SmgApproximate, True),
    "dynamo": (peers.Dynamo, False),
    "llm-d": (peers.LlmdScorers, True),
    "llm-d-precise": (peers.LlmdScorers, False),
    "llm-d-sticky": (peers.LlmdSticky, False),
    "lmetric": (peers.LMetric, False),
    "least-prefill-work": (peers.LeastPrefillWork, False),
    "oracle": (peers.Oracle, True),
}
_ALIASES = {
    "smg-cache-aware": "smg",
    "cache-aware": "smg",
    "least-load": "least-loaded",
    "llmd": "llm-d",
    "llm-d-default": "llm-d",
    "llmd-default": "llm-d",
    "llmd-precise": "llm-d-precise",
}
OWN = "penstock"
NAMES = (OWN, *_PEERS)
# What of CostParams an ablation may switch off. The rule for ties has several parameters.
TERMS = (
    "backlog", "pending", "externality", "lateness", "tpot", "kv_pressure", "replication",
    "adapter_load", "trust", "tie",
)  # fmt: skip
_PARAMETERS = {"tie": ("tie_s", "tie_ttft_share", "tie_share")}


@dataclass(frozen=True, slots=True)
class Setup:
    """What policies are built with. ``cost`` and ``admission`` are Penstock's own."""

    models: tuple[EngineModel, ...]
    seed: int = 0
    cost: CostParams = field(default_factory=CostParams)
    admission: AdmissionParams = field(default_factory=AdmissionParams)


def build(name: str, setup: Setup) -> Policy:
    """A policy by its name.

    Raises:
        InvalidRequest: there is none; the message names those there are.
    """
    known = canonical(name)
    if known == OWN:
        return PenstockPolicy(setup.models, setup.seed, setup.cost, setup.admission)
    kind, optimistic = _PEERS[known]
    return kind(setup.models, setup.seed, optimistic=optimistic)


def canonical(name: str) -> str:
    """The name as this list has it. Raises InvalidRequest as ``build`` does."""
    plain = name.strip().lower().replace("_", "-").replace(" ", "-")
    plain = _ALIASES.get(plain, plain)
    if plain not in NAMES:
        raise InvalidRequest(f"no policy {name!r}; there are {', '.join(NAMES)}", field="policy")
    return plain


def check_terms(terms: Sequence[str]) -> None:
    """Raises InvalidRequest if one is no term of the cost."""
    for term in terms:
        if term not in TERMS:
            raise InvalidRequest(f"no term {term!r}; there are {', '.join(TERMS)}", field="ablate")


def without(cost: CostParams, terms: Sequence[str]) -> CostParams:
    """The cost with some terms switched off. Raises InvalidRequest for an unknown one."""
    check_terms(terms)
    parameters = [name for term in terms for name in _PARAMETERS.get(term, (term,))]
    return replace(cost, **dict.fromkeys(parameters, 0.0))
