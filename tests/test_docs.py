"""What the code promises stands in docs/, and the other way round."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_metric_is_described_and_the_page_is_made_from_that() -> None:
    """`family` knows no other metric; that all of them are shown is tested where the processes run."""
    from server.metric_table import METRICS, markdown

    assert (ROOT / "docs" / "reference" / "metrics.md").read_text() == markdown()
    for page in (*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "deploy" / "README.md"):
        for name in re.findall(r"`(croupier_[a-z_]+)`", page.read_text()):
            assert re.sub(r"_(bucket|count|sum)$", "", name) in METRICS or name in METRICS, f"{page}: {name}"


def test_every_outcome_is_documented() -> None:
    from streaming.contract import OUTCOMES

    page = (ROOT / "docs" / "operations.md").read_text()
    for outcome in OUTCOMES:
        assert f"`{outcome}`" in page, outcome


def test_the_router_s_reasons_are_documented() -> None:
    from typing import get_args

    from server.router_rows import NOT_JSON
    from server.schemas import RefusalReason

    page = (ROOT / "docs" / "router.md").read_text()
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
