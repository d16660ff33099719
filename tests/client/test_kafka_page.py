"""The blocks of docs/how-to/kafka-producer.md run, in order, on a real Kafka and Redis."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

from tests.pages import ROOT, Block
from tests.parts.host import free_ports
from tests.parts.kafka import Broker
from tests.parts.redis import Single
from tests.walk import Walk

PAGE = ROOT / "docs" / "how-to" / "kafka-producer.md"
BLOCK = re.compile(r"^```(sh|python) kafka\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, kafka: Broker, redis_single: Single) -> None:
    (port,) = free_ports(1)
    text = PAGE.read_text().replace("h1:9092", kafka.bootstrap).replace("8010", str(port))
    text = text.replace("redis://r1:6379", redis_single.url.rstrip("/"))
    try:
        walk = Walk(tmp_path, "http://127.0.0.1:8000", tmp_path)
        said = [walk.run(Block(PAGE.name, 0, kind, "kafka", block)) for kind, block in BLOCK.findall(text)]
    finally:
        if (tmp_path / "pids").exists():
            for pid in (tmp_path / "pids").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)
    assert [each.strip() for each in said] == ["", "", "40 messages", "50.0", ""]
