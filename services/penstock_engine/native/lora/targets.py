"""What an adapter may change: seven matrices of a layer, and where they lie in its four products.

Owns the names of PEFT's target modules and the columns they have in the packed matrices. Knows no
tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from penstock_engine.native.models.config import ModelConfig


class Product(IntEnum):
    """The products of a layer, in the order of ``PenstockAdapter`` in ``kernels/lora.h``."""

    QUERY_KEY_VALUE = 0
    OUTPUT = 1
    GATE_UP = 2
    DOWN = 3


@dataclass(frozen=True, slots=True)
class Target:
    """Columns ``[first, first + width)`` of a product over ``depth`` inputs."""

    product: Product
    first: int
    width: int
    depth: int


def targets(config: ModelConfig) -> Mapping[str, Target]:
    """The matrices of a layer that adapters may change, by their module's name in a checkpoint."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj": Target(Product.QUERY_KEY_VALUE, 0, queries, hidden),
        "self_attn.k_proj": Target(Product.QUERY_KEY_VALUE, queries, keys, hidden),
        "self_attn.v_proj": Target(Product.QUERY_KEY_VALUE, queries + keys, keys, hidden),
        "self_attn.o_proj": Target(Product.OUTPUT, 0, hidden, queries),
        "mlp.gate_proj": Target(Product.GATE_UP, 0, inner, hidden),
        "mlp.up_proj": Target(Product.GATE_UP, inner, inner, hidden),
        "mlp.down_proj": Target(Product.DOWN, 0, hidden, inner),
    }


def columns(config: ModelConfig, product: Product) -> int:
    """Width of a product, unpadded."""
    parts = targets(config).values()
    return sum(part.width for part in parts if part.product is product)
