"""Snapshots and restore through real HTTP, learner and shared memory; what may be dropped; the command line."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from server.app import create_app
from server.cli import cli
from server.retention import drop_graphs
from server.settings import Settings
from streaming.control import GraphPut, Restore, SnapshotDrop, SnapshotTake
from streaming.errors import NotFound
from streaming.place import Place
from streaming.replay import replay
from streaming.store import open_store
from tests.server.conftest import BANKER, FILMS, serving
from tests.server.host_parts import Host, random_graph
from tests.server.test_app import small_graph

USERS = {
    "headlines": {"segment": "night"}, "films": {"clusters": [0, 1], "weights": [0.5, 0.5]},
    "fading": {"clusters": [0, 1], "weights": [0.5, 0.5]}, "classic": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("snapshots") / "data"


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[httpx.Client]:
    """A real server of three shards with a policy of each kind."""
    app = create_app(Settings(data=data, shards=3, snapshot_interval_s=1.0))
    with serving(app) as url, httpx.Client(base_url=url) as client:
        client.put("/v1/policies/headlines", json=BANKER).raise_for_status()
        client.put("/v1/policies/classic", json={**BANKER, "rule": "classic"}).raise_for_status()
        client.put("/v1/policies/films", json=FILMS).raise_for_status()
        client.put("/v1/policies/fading", json={**FILMS, "half_life": "1h"}).raise_for_status()
        for name in ("films", "fading"):
            client.put(f"/v1/policies/{name}/graph", content=small_graph().to_bytes()).raise_for_status()
        yield client


def soon(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def play(server: httpx.Client, name: str, reward: float, times: int = 12) -> None:
    for _ in range(times):
        answer = server.post("/v1/recommend", json={"policy": name, "user": USERS[name], "k": 1})
        answer.raise_for_status()
        decision = answer.json()
        row = {"decision_id": decision["decision_id"], "item": decision["items"][0]["id"], "reward": reward}
        server.post("/v1/feedback", json=row).raise_for_status()


def learned(server: httpx.Client, name: str) -> list[dict[str, Any]]:
    """The policy's arms, once everything sent has been learned."""
    segment = USERS[name].get("segment", "all")
    before: Any = None
    while True:
        time.sleep(0.3)
        page = server.get(f"/v1/policies/{name}/arms", params={"segment": str(segment)}).json()["arms"]
        if page == before:
            return page
        before = page


def scores(server: httpx.Client, name: str) -> dict[str, float]:
    """What a worker would show: the means it reads from shared memory."""
    answer = server.post("/v1/recommend", json={"policy": name, "user": USERS[name], "k": 3, "mode": "exploit"})
    return {item["id"]: item["score"] for item in answer.json()["items"]}


def complete(server: httpx.Client, label: str) -> bool:
    return any(each["label"] == label and each["complete"] for each in server.get("/v1/snapshots").json()["snapshots"])


@pytest.mark.parametrize("name", ["headlines", "classic", "films", "fading"])
def test_a_policy_goes_back_to_what_it_knew(server: httpx.Client, name: str) -> None:
    play(server, name, 1.0)
    then = learned(server, name)
    label = f"{name}.1"
    assert server.put(f"/v1/snapshots/{label}").status_code == 201
    soon(lambda: complete(server, label))
    shown = scores(server, name)
    play(server, name, -3.0)
    shown_now, now = (
        scores(server, name),
        learned(server, name),
    )  # in this order: what was shown is learned before the restore
    assert now != then
    assert shown_now != shown
    answer = server.post(f"/v1/policies/{name}/restore", json={"label": label})
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == server.get(f"/v1/policies/{name}").json()["version"]
    back = learned(server, name)
    for mine, theirs in zip(back, then, strict=True):
        for field in ("plays", "rewards"):
            assert mine[field] == theirs[field]
        if name != "fading" and mine["mean"] is not None:
            assert (mine["mean"], mine["width"]) == (theirs["mean"], theirs["width"])
    assert scores(server, name) == pytest.approx(shown, rel=1e-2 if name == "fading" else 1e-6)
    play(server, name, 1.0, 3)
    learned(server, name)
    assert server.delete(f"/v1/snapshots/{label}").status_code == 200


def test_what_cannot_be_is_said(server: httpx.Client, data: Path) -> None:
    def said(answer: httpx.Response, status: int, field: str | None, *words: str) -> None:
        body = answer.json()
        assert (answer.status_code, body.get("field")) == (status, field), body
        for word in words:
            assert word in body["detail"], body

    said(server.put("/v1/snapshots/Upper"), 422, "label", "1 to 64 of a-z")
    server.put("/v1/snapshots/twice").raise_for_status()
    said(server.put("/v1/snapshots/twice"), 409, "label", "delete it first")
    said(server.delete("/v1/snapshots/nowhere"), 404, "label", "GET /v1/snapshots")
    said(server.post("/v1/policies/headlines/restore", json={"label": "nowhere"}), 404, "label", "no snapshot")
    said(server.post("/v1/policies/nowhere/restore", json={"label": "twice"}), 404, "policy", "no policy")
    said(server.post("/v1/policies/films/restore", json={}), 422, "label", "label")
    server.put("/v1/policies/young", json=BANKER).raise_for_status()
    soon(lambda: complete(server, "twice"))
    said(server.post("/v1/policies/young/restore", json={"label": "twice"}), 409, None, "before policy 'young'")
    server.put("/v1/policies/films/graph", content=small_graph().to_bytes()).raise_for_status()
    said(server.post("/v1/policies/films/restore", json={"label": "twice"}), 409, None, "cluster numbering")
    server.delete("/v1/snapshots/twice").raise_for_status()
    server.put("/v1/snapshots/partly").raise_for_status()
    soon(lambda: complete(server, "partly"))
    with contextlib.closing(open_store(Place.of_folder(data).store)) as store:
        answers: list[httpx.Response] = []

        def refused() -> bool:
            for shard in (0, 2):
                for copy in (info for info in store.snapshots(shard) if info.label):
                    store.drop_snapshot(copy.name)
            answers.append(server.post("/v1/policies/headlines/restore", json={"label": "partly"}))
            return answers[-1].status_code == 409

        soon(refused)  # at once, unless the learner, which may for a minute, made a copy again in between
        said(answers[-1], 409, None, "no copy of snapshot 'partly'", "lost: delete the snapshot")
        assert "these shards: 0, 2." in answers[-1].json()["detail"] or len(answers) > 1
    server.delete("/v1/snapshots/partly").raise_for_status()


def test_the_command_line(server: httpx.Client) -> None:
    def run(*args: str) -> Any:
        return CliRunner().invoke(cli, [*args, "--url", str(server.base_url)])

    play(server, "headlines", 1.0, 3)
    taken = run("snapshot", "take", "by-hand")
    assert taken.exit_code == 0, taken.output
    assert "snapshot by-hand is complete" in taken.output
    assert "by-hand" in run("snapshot", "list").output
    assert run("restore", "headlines", "by-hand", "--yes").output.startswith(
        "policy headlines is back at snapshot by-hand"
    )
    refused = run("restore", "headlines", "nowhere", "--yes")
    assert refused.exit_code == 1
    assert "There is no snapshot 'nowhere'" in refused.stderr
    assert "is deleted" in run("snapshot", "delete", "by-hand").output
    assert "by-hand" not in run("snapshot", "list").output


def test_all_of_it_replays(server: httpx.Client, data: Path) -> None:
    play(server, "headlines", 1.0, 2)
    learned(server, "headlines")
    assert replay(Place.of_folder(data)).equal


def test_blobs_of_snapshots_with_a_label_and_of_restores_on_the_way_are_kept(tmp_path: Path) -> None:
    host = Host(tmp_path, shards=2)
    graphs = [random_graph(seed) for seed in range(3)]
    host.diag("films", graphs[0])
    host.follow(SnapshotTake("then"))
    for learner in host.learners:
        learner.sync_labels()
    names = [host.store.put_blob(each.to_bytes()) for each in graphs]
    host.follow(GraphPut("films", names[1]))
    for learner in host.learners:
        learner.snapshot(keep=1)
    blobs = [host.store.put_blob(bytes([n])) for n in range(2)]
    policy = host.learners[0].shard.control.policies["films"]
    host.control(Restore("films", "then", policy.number, policy.graph.number - 1, blobs))

    def there(name: str) -> bool:
        try:
            host.store.get_blob(name)
        except NotFound:
            return False
        return True

    assert drop_graphs(host.log, host.store, host.clock, min_age_ms=-1)
    assert [there(name) for name in (*names, *blobs)] == [True, True, False, True, True]
    host.follow(SnapshotDrop("then"))
    for learner in host.learners:
        learner.sync_labels()
        learner.snapshot(keep=1)
    assert drop_graphs(host.log, host.store, host.clock, min_age_ms=-1)
    assert [there(name) for name in (*names, *blobs)] == [False, True, False, False, False]
    assert not host.store.snapshots(0)[0].label
