"""The client against real servers: slow, stalled, reset, killed and restarted; what it gives, raises and counts."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from croupier.client import (
    AsyncClient,
    Client,
    Decision,
    ProblemError,
    Query,
    QueueFullError,
    Row,
    UnavailableError,
    Verdict,
)
from tests.graphs import small_graph
from tests.parts.proxy import Proxy
from tests.server.processes import Server, serving, wait_for

BANKER = {"algorithm": "banker", "arms": ["a", "b", "c"], "reward": {"window": "1h", "default": 0}}
LONG_S = 30.0  # a deadline that a busy machine does not miss


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("client") / "data") as server:
        with Client(server.url) as client:
            client.put_policy("news", BANKER)
            client.put_policy("sums", BANKER | {"reward": {"window": "1h", "default": 0, "aggregation": "sum"}})
            wait_for(lambda: {each.name for each in client.policies()} == {"news", "sums"})
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(int(server.url.rpartition(":")[2])) as proxy:
        yield proxy


def client_of(server: Server, **options: object) -> Client:
    return Client(server.url, **({"timeout_s": LONG_S} | options))  # type: ignore[typeddict-item]


def lineage_of(server: Server, policy: str) -> int:
    """The upload that began the cluster numbering in use."""
    return int(httpx.get(f"{server.url}/v1/policies/{policy}/graph").raise_for_status().json()["lineage"])


def rewards(client: Client, policy: str) -> float:
    return sum(arm.rewards for arm in client.arms(policy))


def test_a_decision_and_its_reward(server: Server) -> None:
    with client_of(server) as client:
        decision = client.recommend("news", user={"segment": "all"}, exclude=["a"], mode="explore")
        assert decision.decision_id
        assert not decision.fallback
        assert decision.items[0].id in ("b", "c")
        assert client.feedback(decision, decision.items[0].id, 1).status == "accepted"
        assert client.stats.accepted == client.stats.sent == 1


def test_a_batch_has_a_decision_or_a_problem_for_each(server: Server) -> None:
    with client_of(server) as client:
        found = client.recommend_batch([Query(policy="news", k=2), Query(policy="nothing"), Query(policy="news", k=9)])
    assert isinstance(found[0], Decision)
    assert len(found[0].items) == 2
    assert [(each.type.rpartition(":")[2], each.field) for each in found if isinstance(each, ProblemError)] == [
        ("unknown-policy", "requests[1].policy"),
        ("invalid-field", "requests[2].k"),
    ]


def test_the_callers_mistake_is_an_error_with_its_field_and_never_a_fallback(server: Server) -> None:
    with client_of(server, fallback=["a"]) as client:
        with pytest.raises(ProblemError, match="k is 9") as caught:
            client.recommend("news", k=9)
        assert (caught.value.status, caught.value.field) == (422, "k")
        with pytest.raises(ProblemError) as caught:
            client.feedback("nonsense", "a", 1)
        assert (caught.value.type, caught.value.field) == ("urn:croupier:problem:bad-token", "decision_id")
        with pytest.raises(ValueError, match="finite"):
            client.feedback("nonsense", "a", float("nan"))


@pytest.mark.timeout(90)  # a call without its deadline never ends here
@pytest.mark.parametrize("fault", ["stall", "refuse", "delay"])
def test_a_page_gets_its_fallback(proxy: Proxy, fault: str) -> None:
    with Client(f"http://{proxy.address}", timeout_s=LONG_S, fallbacks={"news": ["b", "a"]}, fallback=["z"]) as client:
        assert not client.recommend("news").fallback
        {"stall": proxy.stall, "refuse": proxy.refuse, "delay": lambda: proxy.delay(5_000)}[fault]()
        decision = client.recommend("news", k=2, exclude=["b"], timeout_s=0.2)
        assert (decision.decision_id, decision.fallback, [item.id for item in decision.items]) == (None, True, ["a"])
        assert decision.reason
        assert client.recommend("other", timeout_s=0.2).items[0].id == "z"
        assert client.recommend("news", fallback=["c"], timeout_s=0.2).items[0].id == "c"
        batch = client.recommend_batch([Query(policy="news", candidates=["a"])], timeout_s=0.2)
        assert isinstance(batch[0], Decision)
        assert [item.id for item in batch[0].items] == ["a"]
        assert client.feedback(decision, "a", 1).status == "ignored"
        client.feedback_later(decision, "a", 1)
        assert (client.stats.fallbacks, client.stats.ignored, client.stats.sent) == (4, 2, 0)
        proxy.pass_through()
        assert not client.recommend("news").fallback


@pytest.mark.timeout(90)
async def test_an_async_page_gets_its_fallback_while_others_go_on(server: Server, proxy: Proxy) -> None:
    proxy.stall()
    async with (
        AsyncClient(f"http://{proxy.address}", fallback=["b", "a"]) as stalled,
        AsyncClient(server.url) as direct,
    ):
        late = asyncio.create_task(stalled.recommend("news", exclude=["b"], timeout_s=LONG_S))
        assert not (await direct.recommend("news", timeout_s=LONG_S)).fallback
        assert not late.done()
        found = await asyncio.gather(*(stalled.recommend("news", timeout_s=0.2) for _ in range(20)))
        assert not late.done()
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        assert {each.reason for each in found} == {"no answer within 0.2 s"}
        assert [each.items[0].id for each in found] == ["b"] * 20
        assert stalled.stats.fallbacks == 20


def test_without_a_fallback_it_is_an_error(proxy: Proxy) -> None:
    proxy.stall()
    with Client(f"http://{proxy.address}", timeout_s=0.1) as client, pytest.raises(UnavailableError, match="within"):
        client.recommend("news")


def test_rewards_go_in_bulk_and_the_refused_ones_are_told(server: Server) -> None:
    told: list[tuple[Row, Verdict]] = []

    def on_refused(row: Row, verdict: Verdict) -> None:
        told.append((row, verdict))
        raise KeyError("the application's own mistake")

    with client_of(server, max_batch=20, max_delay_s=60.0, on_refused=on_refused) as client:
        decisions = [client.recommend("news") for _ in range(50)]
        for decision in decisions:
            client.feedback_later(decision, decision.items[0].id, 1)
        client.feedback_later(decisions[0], "no such item", 1)
        assert client.flush()
        assert (client.stats.sent, client.stats.accepted, client.stats.refused) == (51, 50, 1)
    assert [(row.item, verdict.reason) for row, verdict in told] == [("no such item", "unknown-item")]


@pytest.mark.parametrize("item", [object(), "\udc80"])
def test_what_is_no_text_is_the_callers_to_see(server: Server, item: str) -> None:
    with client_of(server) as client:
        decision = client.recommend("news")
        with pytest.raises((TypeError, ValueError)):
            client.feedback_later(decision, item, 1)
        client.feedback_later(decision, decision.items[0].id, 1)
        assert client.flush()
        assert (client.stats.sent, client.stats.accepted) == (1, 1)


def test_a_call_that_is_too_large_is_halved(tmp_path: Path) -> None:
    with serving(tmp_path / "data", max_batch=4) as server, client_of(server, max_batch=64) as client:
        client.put_policy("news", BANKER)
        wait_for(lambda: client.policies())
        decision = client.recommend("news")
        for _ in range(64):
            client.feedback_later(decision, decision.items[0].id, 1)
        assert client.flush()
        assert client.stats.accepted == 64


def test_a_full_queue_refuses_and_counts(proxy: Proxy) -> None:
    options = {"max_queue": 10, "queue_wait_s": 0.05, "max_batch": 5, "timeout_s": LONG_S}
    client = Client(f"http://{proxy.address}", **options)  # type: ignore[arg-type]
    decision = client.recommend("news")
    proxy.refuse()
    for _ in range(10):
        client.feedback_later(decision, decision.items[0].id, 1)
    with pytest.raises(QueueFullError):
        client.feedback_later(decision, decision.items[0].id, 1)
    assert not client.flush(0.05)
    assert (client.stats.sent, client.stats.dropped, client.stats.unsent) == (10, 1, 10)
    proxy.pass_through()
    assert client.close() == 0


def test_a_reward_sent_again_after_a_reset_counts_once(server: Server, proxy: Proxy) -> None:
    with client_of(server) as direct, Client(f"http://{proxy.address}", timeout_s=LONG_S) as client:
        before = rewards(direct, "sums")
        decision = client.recommend("sums")
        proxy.delay(300)  # the server has the reward, its answer is on the way when the connection ends
        sending = threading.Thread(target=client.feedback, args=(decision, decision.items[0].id, 1))
        sending.start()
        wait_for(lambda: rewards(direct, "sums") > before)
        proxy.reset()
        proxy.pass_through()
        sending.join(LONG_S)
        assert (client.stats.accepted, client.stats.retried) == (1, 1)
        second = client.recommend("sums")
        client.feedback(second, second.items[0].id, 10)  # learned after what was repeated
        wait_for(lambda: rewards(direct, "sums") >= before + 11)
        assert rewards(direct, "sums") == before + 11


def test_many_threads_share_a_client(server: Server) -> None:
    with client_of(server) as client:

        def visit() -> None:
            for _ in range(10):
                decision = client.recommend("news")
                client.feedback_later(decision, decision.items[0].id, 1)

        threads = [threading.Thread(target=visit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.flush()
        assert (client.stats.decisions, client.stats.accepted) == (80, 80)


def test_a_forked_child_has_a_client_of_its_own(server: Server) -> None:
    program = f"""
import os
from croupier.client import Client
client = Client({server.url!r}, timeout_s=30, max_delay_s=60)
decision = client.recommend("news")
client.feedback_later(decision, decision.items[0].id, 1)
child = os.fork()
assert client.stats.unsent == (1 if child else 0)
decision = client.recommend("news")
client.feedback_later(decision, decision.items[0].id, 1)
assert client.close() == 0
if child == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_it_loads_no_server_and_no_numbers() -> None:
    heavy = ("numpy", "numba", "server", "bandits")
    program = f"import sys, croupier.client; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_keys(tmp_path: Path) -> None:
    with serving(tmp_path / "data", api_keys="web:recommend+feedback:" + "k" * 20) as server:
        with client_of(server, fallback=["a"]) as client, pytest.raises(ProblemError, match=r"unauthorized \(401\)"):
            client.recommend("news")
        with client_of(server, api_key="k" * 20) as client, pytest.raises(ProblemError, match=r"forbidden \(403\)"):
            client.put_policy("news", BANKER)


async def test_async_rewards_while_others_wait(server: Server) -> None:
    async with AsyncClient(server.url, timeout_s=LONG_S) as client:
        decisions = await asyncio.gather(*(client.recommend("news") for _ in range(20)))
        await asyncio.gather(*(client.feedback_later(each, each.items[0].id, 1) for each in decisions))
        verdict = await client.feedback(decisions[0], decisions[0].items[0].id, 1)
        assert verdict.status == "accepted"
        assert await client.flush()
        assert client.stats.accepted == 21


def test_a_graph_is_uploaded_and_serves(server: Server) -> None:
    graph = small_graph().to_bytes()
    with client_of(server) as client:
        client.put_policy("films", {"algorithm": "diag-linucb", "reward": {"window": "1h", "default": 0}})
        with pytest.raises(ProblemError, match=r"422"):
            client.put_graph("films", b"PK")
        uploaded = client.put_graph("films", graph)
        assert uploaded.graph
        wait_for(lambda: [arm.id for arm in client.arms("films")] == ["318", "296", "a/b c"])
        decision = client.recommend("films", user={"embedding": [1.0, 0.0]}, k=2)
        assert client.feedback(decision, decision.items[0].id, 1).status == "accepted"
        client.put_item("films", "new", embedding=[0.0, 1.0])
        wait_for(lambda: "new" in [arm.id for arm in client.arms("films")])
        lineage = lineage_of(server, "films")
        client.put_graph("films", graph, keeps_clusters=True)
        wait_for(lambda: "new" not in [arm.id for arm in client.arms("films")])
        assert lineage_of(server, "films") == lineage
        client.put_graph("films", graph)
        wait_for(lambda: lineage_of(server, "films") != lineage)
        wait_for(lambda: sum(arm.rewards for arm in client.arms("films")) > 0)  # what was learned is kept
        client.delete_policy("films")
        wait_for(lambda: "films" not in [each.name for each in client.policies()])


def test_administration(server: Server) -> None:
    with client_of(server) as client:
        client.put_policy("temporary", BANKER)
        wait_for(lambda: "temporary" in [each.name for each in client.policies()])
        client.put_item("temporary", "d/e f?")
        wait_for(lambda: [arm.id for arm in client.arms("temporary")] == ["a", "b", "c", "d/e f?"])
        client.pause_item("temporary", "d/e f?")
        wait_for(lambda: client.arms("temporary")[-1].paused)
        client.delete_item("temporary", "d/e f?")
        client.patch_policy("temporary", {"reward": {"window": "2h"}})
        wait_for(lambda: client.policy("temporary").definition["reward"]["window"] in ("2h", 7200))
        with pytest.raises(ProblemError, match="409"):
            client.put_graph("temporary", b"PK")
        client.delete_policy("temporary")
        wait_for(lambda: "temporary" not in [each.name for each in client.policies()])


def test_both_clients_have_the_same_methods_and_each_has_an_example() -> None:
    """The blocking client's examples run the other one, too: it does all of the work."""
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert public - {"stats"} == {name for name in dir(AsyncClient) if not name.startswith("_")}
    assert [name for name in sorted(public) if ">>>" not in (getattr(Client, name).__doc__ or "")] == []
