"""Memory for shared files that is full: what does not fit goes to disk or is refused, and all else goes on."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from bandits.graph import Graph
from server import errors
from server.feedback import NOT_YET
from server.replica import ROOM_RETRY_MS
from server.schemas import User
from server.shared import NO_ROOM, HostFile, NoRoom, RunFolder
from server.tables import room_for
from streaming.control import DIAG_LINUCB, GraphPut, ItemPut, PolicyPut, PolicySpec
from tests.server.host_parts import Host, random_graph
from tests.server.processes import Server, client, make_policy, serving, wait_for
from tests.streaming.faults import filled, small_disk

FILMS = {"algorithm": "diag-linucb", "clusters_per_user": 2, "reward": {"window": "30m", "default": 0}}
BANK = {"algorithm": "banker", "arms": ["a", "b", "c"]}
USER = {"clusters": [0, 1], "weights": [0.5, 0.5]}


def large_graph(edges: int = 200_000, clusters: int = 100) -> Graph:
    width = edges // clusters
    items = np.tile(np.arange(width, dtype=np.uint32), clusters)
    ids = tuple(f"item{i}" for i in range(width))
    return Graph(np.zeros((clusters, 0), np.float32), np.arange(clusters + 1) * width, items, ids)


def put_graph(http: httpx.Client, graph: Graph) -> httpx.Response:
    out = io.BytesIO()
    np.savez_compressed(out, centroids=graph.centroids, indptr=graph.indptr, items=graph.items, ids=np.array(graph.ids))
    return http.put(
        "/v1/policies/films/graph", content=out.getvalue(), headers={"content-type": "application/octet-stream"}
    )


def learns(http: httpx.Client, policy: str, user: dict[str, object]) -> None:
    """A decision, its reward, and that the reward is learned."""

    def applied() -> float:
        start = f'croupier_reward_outcomes_total{{outcome="applied",policy="{policy}"}} '
        return sum(float(line.split()[-1]) for line in http.get("/metrics").text.splitlines() if line.startswith(start))

    before = applied()
    answer = http.post("/v1/recommend", json={"policy": policy, "user": user})
    assert answer.status_code == 200, answer.text
    decision = answer.json()
    row = {"decision_id": decision["decision_id"], "item": decision["items"][0]["id"], "reward": 1}
    assert http.post("/v1/feedback", json=row).status_code == 202
    wait_for(lambda: applied() == before + 1)


def shown_edges(http: httpx.Client) -> int:
    graph = http.get("/v1/policies/films").json()["graph"]
    return 0 if graph is None else int(graph["edges"])


def tables_in(folder: Path) -> int:
    return sum(path.name[0].isdigit() for path in folder.iterdir()) if folder.exists() else 0


def test_a_graph_that_memory_has_no_room_for_is_served_from_the_disk(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with small_disk("1m") as room, serving(data, workers=2, run_dir=room / "run") as server, client(server) as http:
        memory = room / "run"
        make_policy(http, "h", BANK)
        make_policy(http, "films", FILMS)
        assert put_graph(http, large_graph(20_000)).status_code == 202
        wait_for(lambda: shown_edges(http) == 20_000)
        assert (tables_in(memory), tables_in(data / "run")) == (2, 0)
        learns(http, "films", USER)

        assert put_graph(http, large_graph(200_000)).status_code == 202
        wait_for(lambda: shown_edges(http) == 200_000)
        assert (tables_in(memory), tables_in(data / "run")) == (1, 1)
        learns(http, "films", USER)

        with filled(room):  # now not even a catalog fits
            make_policy(http, "late", BANK)
            learns(http, "late", {})
            assert any(path.name.startswith("catalog-") for path in (data / "run").iterdir())
        assert server.stop() == 0
        assert not (data / "run").exists()


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[tuple[Server, Path, Path]]:
    """A server with two policies, 1 MB of memory and 1 MB of disk for shared files, and where these are."""
    data = tmp_path / "data"
    data.mkdir()
    with small_disk("1m") as memory, small_disk("1m") as disk:
        (disk / "run").mkdir()
        (data / "run").symlink_to(disk / "run")
        with serving(data, workers=2, run_dir=memory / "run") as server:
            with client(server) as http:
                make_policy(http, "h", BANK)
                make_policy(http, "films", FILMS)
                assert put_graph(http, large_graph(20_000)).status_code == 202
                wait_for(lambda: shown_edges(http) == 20_000)
            yield server, memory, disk


def test_a_graph_that_fits_nowhere_is_refused_and_everything_else_goes_on(cramped: tuple[Server, Path, Path]) -> None:
    server, _, _ = cramped
    before = server.children()
    with client(server) as http:
        answer = put_graph(http, large_graph(200_000))
        assert answer.status_code == 503
        assert "takes 2.5 MB" in answer.json()["detail"]
        assert "room for more than" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        assert shown_edges(http) == 20_000
        learns(http, "films", USER)
        learns(http, "h", {})
        make_policy(http, "another", BANK)
        assert http.get("/readyz").json()["degraded"] == []
    assert server.children() == before
    assert server.stop() == 0


def test_while_no_byte_is_left_what_is_shown_is_served_and_what_is_new_waits(
    cramped: tuple[Server, Path, Path],
) -> None:
    server, memory, disk = cramped
    before = server.children()
    with client(server) as http:
        with filled(memory), filled(disk):
            answer = http.put("/v1/policies/late", json=BANK)
            assert (answer.status_code, answer.json()["shown"]) == (202, False)
            wait_for(lambda: any("no room" in each for each in http.get("/readyz").json()["degraded"]))
            assert http.get("/readyz").status_code == 200
            learns(http, "films", USER)
            learns(http, "h", {})
        wait_for(lambda: http.get("/v1/policies/late").status_code == 200)
        learns(http, "late", {})
        wait_for(lambda: http.get("/readyz").json()["degraded"] == [])
    assert server.children() == before
    assert server.stop() == 0


def test_a_server_whose_run_folder_is_full_says_so(tmp_path: Path) -> None:
    with small_disk("1m") as memory, filled(memory):
        with pytest.raises(AssertionError, match="is full: make room there, or choose another folder") as caught:
            Server(tmp_path / "data", run_dir=memory / "run")
        assert "Traceback" not in str(caught.value)
        with pytest.raises(NoRoom):
            HostFile.create(RunFolder(memory / "run", memory), 1)


def test_a_graph_that_another_host_has_room_for_leaves_the_former_one_in_use_here() -> None:
    with small_disk("1m") as disk:
        host = Host(disk)
        host.diag("films", random_graph(0), prior=1.0)
        decision = host.recommend("films", user=User(clusters=[0, 1]), k=3)
        pairs = host.views.by_name["films"].arrays["pairs"].copy()
        with filled(disk):
            host.follow(GraphPut("films", host.store.put_blob(random_graph(1).to_bytes())))
            view = host.views.by_name["films"]
            assert view.entry.graph is not None
            assert view.entry.graph.version == random_graph(0).version
            assert host.recommend("films", user=User(clusters=[0, 1]), k=3).version == decision.version
            assert host.host[NO_ROOM] == 2, "nor has the catalog"
            host.follow()
            assert_array_equal(view.arrays["pairs"], pairs)
        host.follow()
        assert host.host[NO_ROOM] == 2, "it is tried again now and then only"
        host.now_ms += ROOM_RETRY_MS
        host.follow()
        after = host.views.by_name["films"].entry.graph
        assert after is not None
        assert after.version == random_graph(1).version
        assert host.host[NO_ROOM] == 0


def test_a_policy_that_never_had_room_says_so_and_its_rewards_may_be_sent_again() -> None:
    with small_disk("1m") as disk:
        host = Host(disk)
        host.follow(PolicyPut("h", PolicySpec("banker"), ["a", "b"]))
        blob = host.store.put_blob(large_graph().to_bytes())
        host.follow(PolicyPut("films", PolicySpec(DIAG_LINUCB)), GraphPut("films", blob))
        assert host.host[NO_ROOM] == 1
        with pytest.raises(errors.Problem, match="no room for the parameters of policy 'films'") as caught:
            host.recommend("films", user=User(clusters=[0]))
        assert caught.value.status == 503
        host.follow(ItemPut("h", "c"))
        assert len(host.recommend("h", k=3).items) == 3

        small = host.store.put_blob(random_graph(1).to_bytes())
        host.follow(GraphPut("films", small))
        host.now_ms += ROOM_RETRY_MS
        host.follow()
        decision = host.recommend("films", user=User(clusters=[0]))
        item = decision.items[0].id
        host.follow(GraphPut("films", blob))  # the former table serves on
        assert host.reward(decision, item, 1.0).reason is None
        host.replica.tables.clear()
        host.replica._entries.clear()  # as an agent that starts again, and finds no room for what there was
        host.replica._published = False
        host.follow(ItemPut("h", "d"))
        assert host.reward(decision, item, 1.0).detail == NOT_YET


def test_what_a_graph_takes_is_told_beforehand(tmp_path: Path) -> None:
    host = Host(tmp_path)
    for graph in (random_graph(), large_graph(50_000)):
        host.follow(PolicyPut("films", PolicySpec(DIAG_LINUCB)))
        host.follow(GraphPut("films", host.store.put_blob(graph.to_bytes())))
        size = Path(host.views.by_name["films"].entry.path).stat().st_size
        assert size <= room_for(graph) <= size + 8192
