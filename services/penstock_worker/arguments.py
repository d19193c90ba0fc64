"""The worker's command line: which engine, and its file. Everything else is a variable."""

import argparse
from typing import NoReturn


class UsageError(ValueError):
    """The command line cannot be read."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of ending the process."""
        raise UsageError(f"python -m penstock_worker: {message}; see --help")


def parse_arguments(arguments: list[str]) -> dict[str, str]:
    """Settings that the command line gives, which override the variables of their names.

    Raises:
        UsageError: an unknown or incomplete argument.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--engine", choices=("native", "trtllm"))
    parser.add_argument("--config")
    given = vars(parser.parse_args(arguments))
    return {name: value for name, value in given.items() if value is not None}
