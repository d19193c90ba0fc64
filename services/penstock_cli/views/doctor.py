"""What the doctor found."""

from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from penstock_cli.doctor.facts import Finding, Level

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}


def findings_table(findings: Sequence[Finding]) -> Table:
    """A line for each finding, with what to do below it."""
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = finding.message + (f"\n[dim]-> {finding.fix}[/]" if finding.fix else "")
        table.add_row(f"[{_STYLES[finding.level]}]{finding.level}[/]", finding.check, text)
    return table


def findings_document(findings: Sequence[Finding]) -> dict[str, object]:
    """For ``--json``."""
    counts = {level.value: sum(f.level is level for f in findings) for level in Level}
    return {"counts": counts, "findings": [asdict(finding) for finding in findings]}
