"""Apps that run inside the test's process."""

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.hot import HotProtocol
from server.settings import Settings
from tests.server.documented import check_problem
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
    """A client that gets a 500 as an answer, as the world would, no exception; errors must be documented ones."""
    with TestClient(create_app(settings, engine), raise_server_exceptions=False) as client:
        client.event_hooks = {"response": [check_problem]}
        yield client


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The URL of a real HTTP server on loopback, in a thread of this process."""
    config = uvicorn.Config(app, http=HotProtocol, port=0, log_level="error", ws="none", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server ended while it started"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


@pytest.fixture
def client(engine: MemoryEngine) -> Iterator[TestClient]:
    with client_of(Settings(), engine) as client:
        yield client
