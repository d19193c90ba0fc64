"""The data folder: one platform at a time in it, and a path short enough for a socket."""

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock_cli.failures import CommandFailed

# A unix socket's path may have about a hundred bytes; a deep data folder would not do.
_MAX_SOCKET_DIR_BYTES = 80


@contextmanager
def owned(data_dir: Path) -> Iterator[None]:
    """Make the folder and hold it; the kernel lets go of it however we end.

    Raises:
        CommandFailed: another platform runs in it, or it cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("w")
    except OSError as error:
        raise CommandFailed(f"cannot use {data_dir} as data folder: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CommandFailed(
                f"another `penstock up` runs in {data_dir}; choose another with --data-dir"
            ) from error
        yield


@contextmanager
def socket_dir(data_dir: Path) -> Iterator[Path]:
    """A folder for sockets: the data folder if its path is short, else one that goes afterwards."""
    if len(bytes(data_dir)) <= _MAX_SOCKET_DIR_BYTES:
        yield data_dir
        return
    with tempfile.TemporaryDirectory(prefix="penstock-") as short:
        yield Path(short)
