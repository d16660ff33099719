"""From short Python data to the JSON that Grafana reads: what a panel is, and where it stands.

A panel says its question (title), what to do about the answer (description), a unit, and one expression per legend.
The rest (grid, ids, datasource, variables, thresholds) is the same everywhere and made here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 39  # Grafana 10.3 and later read it
GRID_WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Variable -> the expression whose label values it offers.
VARIABLES = {
    "policy": "label_values(croupier_decisions_total, policy)",
    "shard": "label_values(croupier_learner_lag_records, shard)",
}


@dataclass(frozen=True)
class Panel:
    """`queries` is (legend, PromQL) per line. `bar` is where it gets bad: above it, or below it where `low_is_bad`."""

    title: str
    description: str
    unit: str  # as Grafana names it
    queries: tuple[tuple[str, str], ...]
    bar: float | None = None
    low_is_bad: bool = False
    kind: str = "timeseries"  # or stat
    width: int = 8
    height: int = 8
    max: float | None = None
    negative: bool = False  # values below 0 mean something


@dataclass(frozen=True)
class Dashboard:
    """`rows` is title -> panels; `intro` says which question the dashboard answers."""

    title: str
    intro: str
    rows: Mapping[str, tuple[Panel, ...]]

    @property
    def uid(self) -> str:
        return f"croupier-{self.title.lower()}"

    @property
    def file_name(self) -> str:
        return f"{self.title.lower()}.json"

    def panels(self) -> Iterator[Panel]:
        for panels in self.rows.values():
            yield from panels

    def to_json(self) -> dict[str, Any]:
        """The dashboard as Grafana stores it; panels flow from left to right and wrap."""
        placed: list[dict[str, Any]] = []
        y = 0
        for title, panels in self.rows.items():
            row = {"type": "row", "title": title, "collapsed": False, "panels": []}
            placed.append(row | {"id": len(placed) + 1, "gridPos": {"h": 1, "w": GRID_WIDTH, "x": 0, "y": y}})
            y += 1
            x = height = 0
            for panel in panels:
                if x + panel.width > GRID_WIDTH:
                    x, y, height = 0, y + height, 0
                place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
                placed.append(_panel(panel) | {"id": len(placed) + 1, "gridPos": place})
                x, height = x + panel.width, max(height, panel.height)
            y += height
        return {
            "uid": self.uid,
            "title": f"croupier: {self.title}",
            "description": self.intro,
            "tags": ["croupier"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,  # one crosshair on all panels
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "annotations": {"list": []},
            "links": [_link()],
            "templating": {"list": _variables(self)},
            "panels": placed,
        }


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": _steps(panel)}}
    if not panel.negative:
        defaults["min"] = 0
    if panel.max is not None:
        defaults["max"] = panel.max
    if panel.kind == "stat":
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        options: dict[str, Any] = {
            "reduceOptions": reduce,
            "colorMode": "value",
            "graphMode": "area",
            "textMode": "auto",
        }
    else:
        style = "off" if panel.bar is None else "line"
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": 8, "thresholdsStyle": {"mode": style}}
        legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]}
        options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": expr,
                "legendFormat": legend,
                "range": True,
            }
            for number, (legend, expr) in enumerate(panel.queries)
        ],
    }


def _steps(panel: Panel) -> list[dict[str, Any]]:
    if panel.bar is None:
        return [{"color": "green", "value": None}]
    first, beyond = ("red", "green") if panel.low_is_bad else ("green", "red")
    return [{"color": first, "value": None}, {"color": beyond, "value": panel.bar}]


def _variables(dashboard: Dashboard) -> list[dict[str, Any]]:
    """The datasource, and of the others those that an expression uses."""
    made: list[dict[str, Any]] = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
    ]
    used = " ".join(expr for panel in dashboard.panels() for _, expr in panel.queries)
    for name, query in VARIABLES.items():
        if f"${name}" in used:
            made.append(
                {
                    "name": name,
                    "label": name.capitalize(),
                    "type": "query",
                    "datasource": SOURCE,
                    "query": {"query": query, "refId": name},
                    "definition": query,
                    "refresh": 2,  # whenever the time range changes
                    "sort": 3,  # 0, 1, 2, ... 10
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": ["All"], "value": ["$__all"]},
                }
            )
    return made


def _link() -> dict[str, Any]:
    return {
        "type": "dashboards",
        "title": "croupier",
        "tags": ["croupier"],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
    }


# How most expressions begin. A counter of a server's workers is summed over servers. What every server reads from the
# store is the same everywhere, so the furthest of them is taken: a sum would count it once per server.
def summed(metric: str, by: str) -> str:
    """Per second, summed over processes, kept apart by the labels `by` ("" for none).

    >>> summed('a_total{policy=~"$policy"}', "mode")
    'sum by (mode) (rate(a_total{policy=~"$policy"}[$__rate_interval]))'
    """
    return f"sum{_by(by)} (rate({metric}[$__rate_interval]))"


def stored(metric: str, by: str) -> str:
    """Per second, of a counter that every server reads from the store.

    >>> stored("a_total", "policy")
    'sum by (policy) (max without (instance, pod) (rate(a_total[$__rate_interval])))'
    """
    return f"sum{_by(by)} (max without (instance, pod) (rate({metric}[$__rate_interval])))"


def stored_change(metric: str, by: str, window: str, function: str = "increase") -> str:
    """How much a counter of the store grew within `window`; with `function` delta, how much a gauge changed."""
    return f"sum{_by(by)} (max without (instance, pod) ({function}({metric}[{window}])))"


def ratio(part: str, whole: str) -> str:
    """A share; NaN, which Grafana leaves out, where the whole is 0."""
    return f"{part} / {whole}"


def quantile(q: float, metric: str, matching: str = "", by: str = "") -> str:
    """A quantile of a histogram's observations, over all processes.

    >>> quantile(0.99, "a_seconds")
    'histogram_quantile(0.99, sum by (le) (rate(a_seconds_bucket[$__rate_interval])))'
    """
    chosen = f"{{{matching}}}" if matching else ""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{chosen}[$__rate_interval])))"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""
