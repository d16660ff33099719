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


def gathered() -> str:
    """The section that gathers all layouts."""
    return (ROOT / "docs" / "operations.md").read_text().partition("## Every topic, key and record")[2]


def test_every_topic_and_group_is_gathered() -> None:
    from functools import cached_property

    from streaming.log.kafka_url import KafkaUrl

    at = KafkaUrl(("h:9092",), "NAME")
    named = {getattr(at, name) for name, kind in vars(KafkaUrl).items() if isinstance(kind, cached_property)}
    topics = {name for name in named if name.startswith("NAME.")}
    assert {"NAME.events", "NAME.learners"} <= topics
    assert topics == set(re.findall(r"`(NAME\.[a-z-]+)`", gathered()))


def test_every_key_in_redis_is_gathered() -> None:
    """From the code: whatever follows a hash tag in a string of the store's modules."""
    written = set()
    for path in (ROOT / "streaming" / "store").glob("redis*.py"):
        code = re.sub(r'"""(.|\n)*?"""', "", path.read_text())
        written |= set(re.findall(r'f"\{(?:self\.)?_?(?:tag|root|key)\}:([a-z]+)', code))
    documented = re.findall(r"^\| `\{[^`]*\}:([a-z]+)", gathered(), re.MULTILINE)
    assert {"manifest", "last", "stream", "part", "kept", "wait"} <= written
    assert written == set(documented)
    drawn = (ROOT / "streaming" / "store" / "redis_keys.py").read_text()
    for key in re.findall(r"^\| `(\{[^`]*)`", gathered(), re.MULTILINE):
        assert re.search(rf"^    {re.escape(key)} ", drawn, re.MULTILINE), f"redis_keys.py does not draw {key}"


def test_every_table_is_gathered() -> None:
    page = gathered()
    schema = "".join((ROOT / "streaming" / each / "sqlite.py").read_text() for each in ("log", "store"))
    for table in re.findall(r"CREATE TABLE (\w+)", schema):
        assert f"`{table}`" in page, table
    written = set()
    for path in (ROOT / "streaming").glob("*.py"):
        written |= set(re.findall(r'(?:write|append|put)\(f?"([a-z_]+)(?=[/"])', path.read_text()))
    assert {"edges", "streams", "log_time"} <= written
    for table in written:
        assert re.search(rf"`{table}[`/]", page), table


def test_every_kind_of_control_record_is_gathered() -> None:
    source = (ROOT / "streaming" / "control.py").read_text()
    for tag in re.findall(r'tag="([a-z-]+)"', source):
        assert re.search(rf"\b{tag}\b", gathered()), tag


def test_the_modules_that_own_layouts_are_there() -> None:
    for module in set(re.findall(r"`((?:streaming|server|bandits)/[\w/]+\.py)`", gathered())):
        assert (ROOT / module).read_text().startswith('"""'), module
