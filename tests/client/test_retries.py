"""What the client does when a real server asks it to wait, or refuses a whole call."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from croupier.client import AsyncClient, Client, ProblemError, Row, UnavailableError, Verdict
from tests.server.processes import Server, serving, wait_for

LONG_S = 30.0  # a deadline that a busy machine does not miss
WAIT_S = 4.0  # a full bucket of the rate limit's one request takes this long
SUMS = {
    "algorithm": "banker",
    "arms": ["a", "b", "c"],
    "reward": {"window": "1h", "default": 0, "aggregation": "sum", "max": 1e10},
}
NAMES = ("waits", "bulk", "short", "page")


def key(name: str) -> str:
    return name.ljust(20, "k")


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives each key one request in `WAIT_S`, and has a policy."""
    keys = ",".join(f"{name}:admin:{key(name)}" for name in ("boss", *NAMES))
    data = tmp_path_factory.mktemp("limited") / "data"
    limit = {"rate_limit_per_s": 1 / WAIT_S, "rate_limit_burst": 1, "workers": 1}
    with serving(data, api_keys=keys, **limit) as server:
        with Client(server.url, api_key=key("boss")) as client:
            client.put_policy("news", SUMS)
        yield server


def limited_client(server: Server, name: str, **options: object) -> Client:
    return Client(server.url, api_key=key(name), **({"timeout_s": LONG_S} | options))  # type: ignore[typeddict-item]


def test_a_page_over_the_rate_limit_gets_its_fallback(limited: Server) -> None:
    with limited_client(limited, "page", fallback=["c"]) as client:
        assert not client.recommend("news").fallback
        decision = client.recommend("news")
        assert decision.fallback
        assert "429" in str(decision.reason)


def test_a_reward_over_the_rate_limit_waits_as_long_as_it_is_told(limited: Server) -> None:
    """Without Retry-After, the backoff alone would ask several times in that time."""
    with limited_client(limited, "waits") as client:
        decision = client.recommend("news")
        assert client.feedback(decision, decision.items[0].id, 1).status == "accepted"
        assert client.stats.retried == 1


def test_the_sender_over_the_rate_limit_waits_as_long_as_it_is_told(limited: Server) -> None:
    with limited_client(limited, "bulk") as client:
        decision = client.recommend("news")
        client.feedback_later(decision, decision.items[0].id, 1)
        assert client.flush()
        assert (client.stats.accepted, client.stats.retried) == (1, 1)


def test_a_wait_that_is_longer_than_the_caller_has_is_an_error_at_once(limited: Server) -> None:
    with limited_client(limited, "short", retry_for_s=WAIT_S / 2) as client:
        decision = client.recommend("news")
        with pytest.raises(UnavailableError, match="429") as caught:
            client.feedback(decision, decision.items[0].id, 1)
        assert caught.value.retry_after_s == WAIT_S
        assert client.stats.retried == 0


async def test_a_server_that_says_503_is_asked_again_when_it_says(tmp_path: Path) -> None:
    """The agent is killed and its supervisor held still, so that none comes in its place before we say so."""
    with serving(tmp_path / "data", workers=1) as server:
        async with AsyncClient(server.url, timeout_s=LONG_S, retry_for_s=0.9) as client:
            await client.put_policy("news", SUMS)
            decision = await client.recommend("news")
            agent = psutil.Process(server.children()["agent"])
            server.process.send_signal(signal.SIGSTOP)
            try:
                agent.kill()
                wait_for(lambda: agent.status() == psutil.STATUS_ZOMBIE)
                with pytest.raises(UnavailableError, match="503") as caught:
                    await client.feedback(decision, decision.items[0].id, 1)
                assert (caught.value.retry_after_s, client.stats.retried) == (1.0, 0)
                await client.feedback_later(decision, decision.items[0].id, 1)
                assert not await client.flush(0.5)
            finally:
                os.kill(server.process.pid, signal.SIGCONT)
            assert await client.flush(60)
            assert client.stats.accepted == 1


def test_a_call_that_is_refused_as_a_whole_is_halved_until_its_row_is_found(tmp_path: Path) -> None:
    """Each reward is a power of two, so the sum tells which of them were learned, and how often."""
    told: list[tuple[Row, Verdict]] = []
    with (
        serving(tmp_path / "data", max_batch=4) as server,
        Client(
            server.url,
            timeout_s=LONG_S,
            max_batch=32,
            max_delay_s=60.0,
            on_refused=lambda row, verdict: told.append((row, verdict)),
        ) as client,
    ):
        client.put_policy("news", SUMS)
        decision = client.recommend("news")
        item = decision.items[0].id
        for power in range(31):
            client.feedback_later(decision, item, 2.0**power)
            if power == 12:
                client.feedback_later(decision, "x" * 5_000_000, 1)
        assert client.flush()
        assert (client.stats.sent, client.stats.accepted, client.stats.refused) == (32, 31, 1)
        with pytest.raises(ProblemError, match="body-too-large"):
            client.feedback(decision, "x" * 5_000_000, 1)
        last = client.recommend("news")
        client.feedback(last, last.items[0].id, 0.5)  # learned after all of them
        wait_for(lambda: sum(arm.rewards for arm in client.arms("news")) % 1 == 0.5)
        assert sum(arm.rewards for arm in client.arms("news")) == 2.0**31 - 0.5
    assert [(len(row.item), verdict.reason) for row, verdict in told] == [
        (5_000_000, "urn:croupier:problem:body-too-large")
    ]
