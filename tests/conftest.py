"""What all tests share: where the real data is, which tests are long, and real servers to test against."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.parts.kafka import Broker
    from tests.parts.redis import Cluster, Single

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL_PARTS = {"kafka", "redis_single", "redis_cluster"}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one real server share a worker, and so the server. Long tests run in `make faults`; elsewhere they are
    left out with the command that runs them."""
    for item in items:
        if REAL_PARTS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("parts"))
    if os.environ.get("CROUPIER_LONG"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="minutes of load or faults: CROUPIER_LONG=1, or `make faults`"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}: put the shared folder beside the project to run this test")
    return SHARED


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One Kafka broker for all tests: use topics and groups of your own, and ``restart()`` it if you killed it."""
    from tests.parts.kafka import Broker

    with Broker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def redis_single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Single]:
    """One Redis for all tests, with an append-only file: use a key prefix of your own."""
    from tests.parts.redis import Single

    with Single(tmp_path_factory.mktemp("redis"), appendonly="yes") as single:
        yield single


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One Redis Cluster for all tests, each node behind a proxy: use keys of your own, ``heal()`` what you broke."""
    from tests.parts.redis import Cluster

    with Cluster(tmp_path_factory.mktemp("cluster"), proxied=True) as cluster:
        yield cluster
