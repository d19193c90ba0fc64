"""One deadline over all the calls that a request makes."""

import time
from dataclasses import dataclass
from typing import Self

from penstock_core.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point of the monotonic clock, in seconds."""

    at_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Self:
        """The deadline ``timeout_s`` seconds from now."""
        return cls(time.monotonic() + timeout_s)

    def remaining_s(self) -> float:
        """Seconds left. Raises DeadlineExceeded if there are none."""
        left = self.at_s - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the request's deadline passed")
        return left
