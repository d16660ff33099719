"""Apps that run inside the test's process."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server.app import create_app
from server.settings import Settings
from tests.server.memory import MemoryEngine

with warnings.catch_warnings():  # it would rather have a successor of httpx, which the server itself does not need
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient as TestClient

BANKER = {
    "algorithm": "banker",
    "regularizer": "log-barrier",
    "arms": ["a", "b", "c"],
    "reward": {"window": "30m", "default": 0, "aggregation": "first"},
}
FILMS = {"algorithm": "diag-linucb", "clusters_per_user": 2, "alpha": 1.0, "reward": {"window": "30m", "default": 0}}


@contextmanager
def client_of(settings: Settings, engine: MemoryEngine) -> Iterator[TestClient]:
    """A client that gets a 500 as an answer, as the world would, and not as an exception."""
    with TestClient(create_app(settings, engine), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


@pytest.fixture
def client(engine: MemoryEngine) -> Iterator[TestClient]:
    with client_of(Settings(), engine) as client:
        yield client
