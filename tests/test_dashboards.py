"""The dashboards are what their generator writes, are sound, and every expression finds something to show.

Grafana cannot be installed here, so nothing was rendered. The list of panels, with what each line was at
the end of the load and at its highest, goes to build/artefacts/panels.md.
"""

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from deploy.grafana.make_dashboards import DASHBOARDS, ROOT, files
from deploy.grafana.panels import GRID_WIDTH, VARIABLES, Dashboard, Panel
from tests.observed import Observed
from tests.parts.kafka import Broker
from tests.parts.prometheus import Sample, tool
from tests.parts.redis import Single
from tests.promql import names, operands

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
PANELS = [(dashboard, panel) for dashboard in DASHBOARDS for panel in dashboard.panels()]
IDS = [f"{dashboard.title}: {panel.title}" for dashboard, panel in PANELS]
LOAD_S = 20.0
# Grafana replaces these; here all policies and shards are asked for, over all that was scraped.
FILLED = {"$__rate_interval": "2m", **{f"${name}": ".*" for name in VARIABLES}}
# Lines that are 0 while all is well, and for which no fault is made here.
MAY_BE_0 = {
    "Decisions lost and dropped: lost", "Decisions lost and dropped: dropped", "Slow requests: over 50 ms",
    "Change-feed gaps: {{instance}}", "Router lag: partition {{partition}}",
}  # fmt: skip
# Units of Grafana that a panel here has.
UNITS = {"none", "s", "ms", "bytes", "percentunit", "reqps", "ops"}


def filled(expr: str) -> str:
    for variable, value in FILLED.items():
        expr = expr.replace(variable, value)
    return expr


def test_the_json_and_the_page_are_what_the_generator_writes() -> None:
    for path, text in files().items():
        assert (ROOT / path).read_text() == text, f"{path}: run python -m deploy.grafana.make_dashboards"
    written = {path.name for path in files() if path.suffix == ".json"}
    assert {path.name for path in (ROOT / "deploy/grafana/dashboards").iterdir()} == written


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.title)
def test_a_dashboard_is_sound(dashboard: Dashboard) -> None:
    made = json.loads(json.dumps(dashboard.to_json()))
    panels = made["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations(panels, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), f"{one['title']} lies over {other['title']}"
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= GRID_WIDTH
    variables = {each["name"]: each for each in made["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval"}
    assert used == set(variables)
    for name in used - {"datasource"}:
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]


def test_titles_and_addresses_of_dashboards_are_their_own() -> None:
    assert len({each.uid for each in DASHBOARDS}) == len({each.title for each in DASHBOARDS}) == len(DASHBOARDS)


@pytest.mark.parametrize(("dashboard", "panel"), PANELS, ids=IDS)
def test_a_panel_says_what_it_shows_and_what_to_do(dashboard: Dashboard, panel: Panel) -> None:
    (made,) = (each for each in dashboard.to_json()["panels"] if each["title"] == panel.title)
    assert panel.unit in UNITS
    assert len(panel.description) > 60
    assert panel.description.endswith((".", "?"))
    steps = made["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert len(steps) == (1 if panel.bar is None else 2)
    assert steps[0]["value"] is None
    assert made["datasource"]["uid"] == "${datasource}"
    assert len({target["refId"] for target in made["targets"]}) == len(panel.queries)
    for legend, expr in panel.queries:
        assert legend
        promql_parser.parse(filled(expr))
        assert (" / " in expr) == (panel.unit == "percentunit"), "a share is a percentunit, and nothing else is"


# title, the value that the policy's line has over the series below
KNOWN = [
    ("Lift over the explore slice", 0.5),
    ("Evenness", 0.5),
    ("Share of fresh items", 0.25),
    ("Share answered", 0.4),
]
SERIES = {
    'croupier_items_shown_total{policy="p",mode="explore",instance="%s"}': "0+100x90",
    'croupier_items_shown_total{policy="p",mode="exploit",instance="%s"}': "0+900x90",
    'croupier_reward_sum{policy="p",mode="explore",instance="%s"}': "0+4x90",
    'croupier_reward_sum{policy="p",mode="exploit",instance="%s"}': "0+54x90",
    'croupier_items_answered_total{policy="p",mode="exploit",instance="%s"}': "0+400x90",
    'croupier_arms_entropy{policy="p",instance="%s"}': "1.1512925464970229+0x90",
    'croupier_items{policy="p",instance="%s"}': "10+0x90",
    'croupier_plays_total{policy="p",instance="%s"}': "0+1000x90",
    'croupier_fresh_plays_total{policy="p",instance="%s"}': "0+250x90",
}


@pytest.mark.parametrize(("title", "value"), KNOWN)
def test_shares_are_right_over_known_series_of_two_servers(title: str, value: float, tmp_path: Path) -> None:
    (panel,) = (panel for _, panel in PANELS if panel.title == title)
    ((_, expr),) = panel.queries
    series = [
        {"series": name % instance, "values": values} for name, values in SERIES.items() for instance in ("a", "b")
    ]
    sample = {"labels": '{policy="p"}', "value": 1}
    close = {"expr": f"abs(({filled(expr)}) - {value}) < bool 1e-9", "eval_time": "80m", "exp_samples": [sample]}
    test = tmp_path / "test.yml"
    test.write_text(json.dumps({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [close]}]}))
    subprocess.run([tool("promtool"), "test", "rules", test], check=True)


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    across = one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
    return across and one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]


@pytest.fixture(scope="module")
def observed(kafka: Broker, redis_single: Single, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    observed = Observed(tmp_path_factory.mktemp("observed"), kafka, redis_single, RULES)
    try:
        observed.load(LOAD_S)
        yield observed
    finally:
        observed.close()


def test_every_panel_shows_something(observed: Observed) -> None:
    lines = ["| dashboard | panel | line | series | highest | values |", "|---|---|---|---|---|---|"]
    silent, still = [], []
    for dashboard, panel in PANELS:
        for legend, expr in panel.queries:
            found = observed.prometheus.finite(filled(expr))
            if not found:
                silent.append(f"{dashboard.title}: {panel.title}: {expr}")
            past = observed.prometheus.finite(f"max_over_time(({filled(expr)})[5m:1s])")
            highest = max((sample.value for sample in found + past), default=0.0)
            line = f"{panel.title}: {legend}"
            if not highest and line not in MAY_BE_0:
                still.append(f"{dashboard.title}: {line}")
            shown = "; ".join(map(written, sorted(found, key=lambda sample: -abs(sample.value))[:4]))
            lines.append(f"| {dashboard.title} | {panel.title} | {legend} | {len(found)} | {highest:.4g} | {shown} |")
    folder = ROOT / "build" / "artefacts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "panels.md").write_text("\n".join(lines) + "\n")
    assert not silent, "no series with a finite value:\n" + "\n".join(silent)
    assert not still, "0 though the fault was made:\n" + "\n".join(still)


def test_every_rule_is_evaluated_and_looks_at_something(observed: Observed) -> None:
    rules: list[dict[str, Any]] = observed.prometheus.rules()
    assert rules
    for rule in rules:
        assert rule["health"] == "ok", f"{rule['name']}: {rule['lastError']}"
        for operand in operands(rule["query"]):
            # The past of an hour or a day ago is not there yet.
            now = re.sub(r" offset \w+", "", operand)
            assert observed.prometheus.finite(now), f"{rule['name']}: no finite value of {now}"


def test_every_metric_that_is_named_is_scraped(observed: Observed) -> None:
    there = {sample.labels["__name__"] for sample in observed.prometheus.query('group by (__name__) ({__name__!=""})')}
    asked = {expr: f"{dashboard.title}: {panel.title}" for dashboard, panel in PANELS for _, expr in panel.queries}
    asked |= {rule["query"]: rule["name"] for rule in observed.prometheus.rules()}
    for expr, where in asked.items():
        assert names(filled(expr)) <= there, where
    for name, query in VARIABLES.items():
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()  # type: ignore[union-attr]
        assert label == name
        assert all(name in sample.labels for sample in observed.prometheus.query(metric))


def written(sample: Sample) -> str:
    labels = ", ".join(value for name, value in sample.labels.items() if name != "__name__")
    return f"{labels}: {sample.value:.4g}" if labels else f"{sample.value:.4g}"
