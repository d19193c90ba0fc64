"""How many lines may run at once: widens while the router takes them, halves when it pushes back.

AIMD, shared by every shard of a process. ``Aimd`` is pure; ``Gate`` makes callers wait for it.
Source: additive increase, multiplicative decrease (Chiu and Jain, 1989).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

_COOL_OFF_S = 0.5


@dataclass(frozen=True, slots=True)
class Aimd:
    """The limit now. One push-back halves it; a whole window of successes adds one."""

    limit: float
    least: int
    most: int
    lowered_at: float = float("-inf")

    @classmethod
    def starting(cls, at: int, most: int) -> "Aimd":
        """A limit that starts at ``at`` and never exceeds ``most``."""
        return cls(float(min(at, most)), 1, most)

    @property
    def width(self) -> int:
        """Lines that may run."""
        return int(self.limit)

    def succeeded(self) -> "Aimd":
        """After a line that was taken."""
        return Aimd(
            min(self.most, self.limit + 1 / self.limit), self.least, self.most, self.lowered_at
        )

    def pushed_back(self, now: float) -> "Aimd":
        """After a refusal. Refusals of lines sent together count as one."""
        if now - self.lowered_at < _COOL_OFF_S:
            return self
        return Aimd(max(self.least, self.limit / 2), self.least, self.most, now)


class Gate:
    """Lets as many callers in as the limit says. For one event loop."""

    def __init__(self, aimd: Aimd) -> None:
        self._aimd = aimd
        self._inside = 0
        self._changed = asyncio.Condition()

    @property
    def width(self) -> int:
        """The limit now."""
        return self._aimd.width

    @asynccontextmanager
    async def pass_through(self) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._inside < self._aimd.width)
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            async with self._changed:
                self._changed.notify_all()

    def succeeded(self) -> None:
        """A line was taken."""
        self._aimd = self._aimd.succeeded()

    def pushed_back(self) -> None:
        """A line was refused for lack of capacity."""
        self._aimd = self._aimd.pushed_back(asyncio.get_running_loop().time())
