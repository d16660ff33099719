"""What the code promises stands in docs/, and the other way round."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def learner_metrics() -> set[str]:
    """What a learner process shows."""
    from prometheus_client.exposition import generate_latest

    from server.learner_loop import LearnerLoop
    from server.learner_metrics import LearnerMetrics
    from streaming.log.memory import MemoryLog
    from streaming.store.memory import MemoryStore

    metrics = LearnerMetrics()
    metrics.loop = LearnerLoop(MemoryLog(1), MemoryStore())
    return set(re.findall(r"# TYPE (\w+)", generate_latest(metrics.registry).decode()))


def test_every_metric_is_documented() -> None:
    source = (ROOT / "server" / "metrics.py").read_text()
    page = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r'"(croupier_[a-z_]+)"', source))
    counters = set(re.findall(r'CounterMetricFamily\(\s*"(croupier_[a-z_]+)"', source))
    exported = {f"{name}_total" if name in counters else name for name in named}
    documented = set(re.findall(r"`(croupier_[a-z_]+)", page))
    assert exported | learner_metrics() == documented


def test_every_outcome_is_documented() -> None:
    from streaming.contract import OUTCOMES

    page = (ROOT / "docs" / "operations.md").read_text()
    for outcome in OUTCOMES:
        assert f"`{outcome}`" in page, outcome


def test_the_router_s_metrics_and_reasons_are_documented() -> None:
    from typing import get_args

    from server.router_rows import NOT_JSON
    from server.schemas import RefusalReason

    source = (ROOT / "server" / "router_metrics.py").read_text()
    page = (ROOT / "docs" / "router.md").read_text()
    exported = set(re.findall(r'"(croupier_router_[a-z_]+)"', source))
    assert exported == set(re.findall(r"`(croupier_router_[a-z_]+)", page))
    for reason in (NOT_JSON, *get_args(RefusalReason)):
        assert f"| `{reason}` |" in page, reason
