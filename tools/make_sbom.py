"""Writes a software bill of materials (CycloneDX 1.6 JSON) of the installed packages, offline.

python tools/make_sbom.py sbom.json
"""

import json
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5


def document(found: list[Distribution]) -> dict[str, object]:
    """The bill; the same packages give the same one."""
    parts = sorted({purl(one): component(one) for one in found}.items())
    serial = uuid5(NAMESPACE_URL, " ".join(name for name, _ in parts))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "components": [part for _, part in parts],
    }


def component(one: Distribution) -> dict[str, object]:
    """A package with its licence, where it tells one."""
    said = str(one.metadata.json.get("license_expression", ""))
    licences = [{"expression": said}] if said else []
    return {
        "type": "library",
        "bom-ref": purl(one),
        "name": one.metadata["Name"],
        "version": one.version,
        "purl": purl(one),
        "licenses": licences,
    }


def purl(one: Distribution) -> str:
    """Its package URL. Source: purl-spec, PyPI names in small letters with dashes."""
    name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
    return f"pkg:pypi/{name}@{one.version}"


def main() -> int:
    """Write the bill to the file that is named."""
    bill = document([one for one in distributions() if one.metadata["Name"]])
    Path(sys.argv[1]).write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
