"""A failure that is told in a sentence, not as a traceback."""


class CommandFailed(Exception):
    """The command cannot go on; the message says why. ``detail`` may hold log lines."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail
