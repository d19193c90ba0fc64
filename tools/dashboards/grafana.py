"""Grafana's JSON from the little that our dashboards need: rows of time series, stats and gauges."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_COLUMNS = 24
_HEIGHT = 8
_PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and the name of its lines."""

    expression: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture; ``unit`` is Grafana's name of it, ``help`` says what an operator reads from it."""

    title: str
    help: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of rows, each with a title and panels of equal width."""

    uid: str
    title: str
    rows: Sequence[tuple[str, Sequence[Panel]]]

    def to_json(self) -> Json:
        """As Grafana's provisioning reads it."""
        panels: list[Json] = []
        top = 0
        for title, row in self.rows:
            panels.append(_row(title, len(panels) + 1, top))
            top += 1
            width = _COLUMNS // len(row)
            for column, panel in enumerate(row):
                place = {"x": column * width, "y": top, "w": width, "h": _HEIGHT}
                panels.append(_panel(panel, len(panels) + 1, place))
            top += _HEIGHT
        return {
            "uid": self.uid,
            "title": f"Penstock: {self.title}",
            "tags": ["penstock"],
            "schemaVersion": 41,
            "editable": True,
            "refresh": "10s",
            "time": {"from": "now-30m", "to": "now"},
            "timezone": "browser",
            "graphTooltip": 1,
            "links": [_links()],
            "templating": {"list": []},
            "panels": panels,
        }


def _links() -> Json:
    return {
        "type": "dashboards",
        "title": "Penstock",
        "tags": ["penstock"],
        "asDropdown": False,
        "keepTime": True,
    }


def _row(title: str, number: int, top: int) -> Json:
    place = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
    return {"id": number, "type": "row", "title": title, "gridPos": place, "panels": []}


def _panel(panel: Panel, number: int, place: Json) -> Json:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "expr": query.expression,
            "legendFormat": query.legend,
            "datasource": _PROMETHEUS,
            "exemplar": "_bucket" in query.expression,
        }
        for index, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "gridPos": place,
        "datasource": _PROMETHEUS,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {},
    }
