"""The plan of docs/sizing.md is what the program says, and its arithmetic is what it says it is."""

import math
from pathlib import Path

import pytest

from benchmarks import sizing
from benchmarks.sizing import FIGURES, TO_MEASURE, Figure, Prices, Site, copies, limits, plan

PAGE = Path(__file__).resolve().parents[1] / "docs" / "sizing.md"
KNOWN = {
    "recommends": 5e3, "rewards": 1e5, "appended": 2e5, "followed": 4e6, "cell": 40.0, "routed": 2e4, "learned": 2e5,
    "commit": 400.0, "edge": 17.0, "snapshot": 16.0, "loaded": 3e6,
}  # fmt: skip
FULL = {name: Figure(value, "", "", "") for name, value in KNOWN.items()}


def test_the_tables_of_the_page_are_the_program_s() -> None:
    made = PAGE.read_text().partition("--markdown -->\n")[2].partition("<!-- end -->")[0]
    assert made.strip() == sizing.markdown(Site(), Prices()).strip(), "python -m benchmarks.sizing --markdown"


def test_what_is_not_measured_is_said_wherever_it_counts() -> None:
    missing = [name for name, figure in FIGURES.items() if figure.value is None]
    page = PAGE.read_text()
    for name in missing:
        assert f"{TO_MEASURE}_{name}" in page
    bare = {name: figure._replace(value=None) for name, figure in FULL.items()}
    unknown = [line.what for line in plan(Site(), bare) if line.value is None]
    assert {"partitions P", "masters, and as many replicas", "agent of each host follows"} <= set(unknown)
    assert TO_MEASURE not in sizing.markdown(Site(), Prices(), FULL)


def test_the_plan_of_a_site_computed_by_hand() -> None:
    site = Site(decisions_per_day=86_400e3, peak=2.0, items=4, clusters=5, answers=1.0, edges=1e6)
    lines = {(line.part, line.what): line.value for line in plan(site, FULL)}
    assert lines["load", "decisions at the peak"] == 2_000
    assert lines["load", "events at the peak"] == 10_000
    assert lines["Kafka", "partitions P"] == 8
    assert lines["Kafka", "copies of a decision"] == pytest.approx(8 * (1 - (7 / 8) ** 4))
    assert lines["servers", "cells that change, at most"] == pytest.approx(0.04)
    assert lines["servers", "cores that answer"] == pytest.approx((2_000 / 5e3 + 2_000 / 1e5) / 0.5)
    assert lines["learners", "cores"] == pytest.approx(10_000 / 2e5 / 0.5)
    assert lines["Redis", "edges"] == pytest.approx(0.017)
    assert lines["Redis", "answers seen"] == pytest.approx(2_000 * 1800 * 24 / 1e9)


def test_more_of_a_site_never_needs_less() -> None:
    small, large = (plan(Site(decisions_per_day=n), FULL) for n in (1e8, 1e10))
    for a, b in zip(small, large, strict=True):
        assert a.value is not None
        assert b.value is not None
        assert a.value <= b.value or a.what in ("a shard taken over is loaded in", "agent of each host appends"), a.what


def test_the_first_limit_is_where_its_part_is_full() -> None:
    first = limits(Site(), FULL)[0]
    assert first.value is not None
    assert first.what.startswith("each host's agent")
    at_limit = {line.what: line.value for line in plan(Site(decisions_per_day=first.value), FULL)}
    assert at_limit["agent of each host follows"] == pytest.approx(1.0)


def test_copies_of_a_decision_by_drawing() -> None:
    from streaming.shards import shards_of_items

    drawn = [len(set(shards_of_items(1, range(10 * n, 10 * n + 10), 64).tolist())) for n in range(500)]
    assert math.isclose(sum(drawn) / 500, copies(10, 64), rel_tol=0.02)
