"""What the code promises stands in docs/, and the other way round."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_metric_is_documented() -> None:
    source = (ROOT / "server" / "metrics.py").read_text()
    page = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r'"(croupier_[a-z_]+)"', source))
    counters = set(re.findall(r'CounterMetricFamily\(\s*"(croupier_[a-z_]+)"', source))
    exported = {f"{name}_total" if name in counters else name for name in named}
    documented = set(re.findall(r"`(croupier_[a-z_]+)", page))
    assert exported == documented


def test_every_outcome_is_documented() -> None:
    from streaming.contract import OUTCOMES

    page = (ROOT / "docs" / "operations.md").read_text()
    for outcome in OUTCOMES:
        assert f"`{outcome}`" in page, outcome
