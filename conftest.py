"""The server of the client's doctests: a real one, started by the first that names `url`. It stands here because
everything in `croupier/` is packaged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.graphs import small_graph
from tests.server.processes import make_policy, serving

ROOT = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def doctest_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data: Path = tmp_path_factory.mktemp("doctests") / "data"
    with serving(data) as server:
        with httpx.Client(base_url=server.url, timeout=30) as http:
            make_policy(http, "headlines", {"algorithm": "banker", "arms": ["calm", "loud", "odd"]})
        yield server.url


@pytest.fixture(autouse=True)
def _names(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    if ROOT / "croupier" not in request.path.parents:
        return
    examples = getattr(getattr(request.node, "dtest", None), "examples", [])
    if any("url" in example.source for example in examples):
        doctest_namespace["url"] = request.getfixturevalue("doctest_url")
        doctest_namespace["graph"] = small_graph().to_bytes()
