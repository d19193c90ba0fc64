"""The model revision: a digest that names a checkpoint's weights and shape.

Owns the formula. Two workers with the same revision hold the same model, so their KV blocks go
by the same names. Reads small files whole and large ones by header and samples: seconds of
disk are not worth a digest that is no proof of anything but identity.
"""

import hashlib
from pathlib import Path

_WHOLE_FILE_BYTES = 64 << 20
_SAMPLE_BYTES = 64 << 10
_NUM_SAMPLES = 64


def model_revision(model: Path) -> str:
    """Sixteen hex digits over ``config.json`` and every safetensors file of a directory."""
    digest = hashlib.sha256()
    for path in [model / "config.json", *sorted(model.glob("*.safetensors"))]:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_FILE_BYTES:
                digest.update(file.read())
                continue
            for index in range(_NUM_SAMPLES):  # the first one covers the header's start
                file.seek(index * (size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
