"""Write ``deploy/grafana/dashboards/*.json`` from ``tools/dashboards``."""

import json
from pathlib import Path

from dashboards.pages import PAGES

FOLDER = Path(__file__).resolve().parents[1] / "deploy/grafana/dashboards"


def files() -> dict[Path, str]:
    """Texts of all files."""
    return {
        FOLDER / f"{name}.json": json.dumps(page.to_json(), indent=2) + "\n"
        for name, page in PAGES.items()
    }


def main() -> None:
    """Write them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(FOLDER.parents[2]))


if __name__ == "__main__":
    main()
