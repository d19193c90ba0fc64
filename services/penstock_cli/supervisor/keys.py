"""API keys of a platform on one machine: the callers' and the batch runner's own."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock_cli.failures import CommandFailed
from penstock_core.cost.budgets import Budget
from penstock_core.security.auth import DEFAULT_TENANT, KeyRing, key_file, new_key

_SERVICE_TENANT = "penstock-batch"


@dataclass(frozen=True, slots=True)
class Keys:
    """``file`` are the files that servers read; ``service`` the batch runner's key; ``shown`` a caller's key."""

    file: str
    service: str
    shown: str


def no_keys() -> Keys:
    """Everybody is admitted."""
    return Keys("", "", "")


def settle_keys(data_dir: Path, callers: Path | None, budget: Budget | None = None) -> Keys:
    """Write a key file with the callers' keys and a fresh service key.

    Without a file of the callers' there is one key for them, kept in ``data_dir/api_key`` so that
    it stays the same from start to start; ``budget`` is what may be spent with it.

    Raises:
        CommandFailed: the callers' file is no key file.
    """
    service = new_key()
    shown = "" if callers else _kept_key(data_dir / "api_key")
    ours = [(service, _SERVICE_TENANT, True)]
    if shown:
        ours.append((shown, DEFAULT_TENANT, False))
    entries = json.loads(key_file(ours))["keys"]
    if shown and budget is not None:
        entries[-1]["budget"] = asdict(budget)
    path = data_dir / "own_keys.json"
    _write_private(path, json.dumps({"keys": entries}, indent=2))
    if callers is None:
        # Where `penstock keys create --store DATA_DIR/keys.json` puts more of them.
        callers = data_dir / "keys.json"
        if not callers.exists():
            _write_private(callers, key_file([]))
    else:
        _check(callers)
    # The callers' file itself, so that servers see it change.
    return Keys(f"{path},{callers.resolve()}", service, shown)


def _check(path: Path) -> None:
    try:
        KeyRing.load(path)
    except (OSError, ValueError) as error:
        raise CommandFailed(f"cannot use the key file: {error}") from error


def _kept_key(path: Path) -> str:
    if path.is_file() and (kept := path.read_text(encoding="ascii").strip()):
        return kept
    key = new_key()
    _write_private(path, key + "\n")
    return key


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text, encoding="utf-8")
