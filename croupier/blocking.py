"""The client for programs without asyncio: `AsyncClient` in a thread of its own, one for each process."""

import asyncio
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from croupier.aio import AsyncClient, Options
from croupier.wire import Arm, Changed, Decision, Mode, Policy, ProblemError, Query, Stats, User, Verdict

T = TypeVar("T")


class _Runner:
    """An event loop in a daemon thread, and the client that lives in it."""

    def __init__(self, base_url: str, options: Options) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="croupier-client", daemon=True)
        self.thread.start()
        self.client = self.run(self._make(base_url, options))

    async def _make(self, base_url: str, options: Options) -> AsyncClient:
        return AsyncClient(base_url, **options)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Client:
    """As `AsyncClient`, which documents the options, but each call waits for its answer.

    Any number of threads may share one. After a fork the child has a client of its own, with an empty queue and new
    counters: what the parent had queued is the parent's to send.

    >>> with Client(url, timeout_s=5, fallback=["calm"]) as client:
    ...     decision = client.recommend("headlines", user={"segment": "all"})
    ...     client.feedback_later(decision, decision.items[0].id, 1.0)
    ...     client.flush(), client.stats.accepted
    (True, 1)
    """

    def __init__(self, base_url: str = "http://127.0.0.1:8000", **options: Unpack[Options]) -> None:
        self._base_url = base_url
        self._options = options
        self._runner = _Runner(base_url, options)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    @property
    def stats(self) -> Stats:
        """Counters of this process.

        >>> with Client(url, timeout_s=5) as client:
        ...     decision = client.recommend("headlines")
        ...     client.stats.decisions
        1
        """
        return self._here().client.stats

    def recommend(
        self,
        policy: str,
        *,
        user: User | None = None,
        k: int = 1,
        exclude: Sequence[str] | None = None,
        candidates: Sequence[str] | None = None,
        mode: Mode | None = None,
        fallback: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Decision:
        """Which `k` items to show, best first; the fallback where no answer comes in time.

        >>> with Client(url) as client:
        ...     client.recommend("headlines", fallback=["calm"], timeout_s=0.0).fallback
        True
        """
        here = self._here()
        return here.run(
            here.client.recommend(
                policy,
                user=user,
                k=k,
                exclude=exclude,
                candidates=candidates,
                mode=mode,
                fallback=fallback,
                timeout_s=timeout_s,
            )
        )

    def recommend_batch(
        self, queries: Sequence[Query], *, fallback: Sequence[str] | None = None, timeout_s: float | None = None
    ) -> list[Decision | ProblemError]:
        """A decision or a problem for each query.

        >>> with Client(url, timeout_s=5) as client:
        ...     found = client.recommend_batch([Query(policy="headlines"), Query(policy="nothing")])
        ...     [type(each).__name__ for each in found]
        ['Decision', 'ProblemError']
        """
        here = self._here()
        return here.run(here.client.recommend_batch(queries, fallback=fallback, timeout_s=timeout_s))

    def feedback(self, decision: Decision | str, item: str, reward: float, event_id: str | None = None) -> Verdict:
        """Sends one reward and returns when it is durable; see `AsyncClient.feedback`.

        >>> with Client(url, timeout_s=5) as client:
        ...     decision = client.recommend("headlines")
        ...     client.feedback(decision, decision.items[0].id, 1.0, event_id="order-77").status
        'accepted'
        """
        here = self._here()
        return here.run(here.client.feedback(decision, item, reward, event_id))

    def feedback_later(self, decision: Decision | str, item: str, reward: float, event_id: str | None = None) -> None:
        """Puts a reward into the queue of the background sender.

        >>> with Client(url, timeout_s=5) as client:
        ...     decision = client.recommend("headlines")
        ...     client.feedback_later(decision, decision.items[0].id, 1.0)
        ...     client.stats.sent
        1
        """
        here = self._here()
        here.run(here.client.feedback_later(decision, item, reward, event_id))

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Waits until every queued reward was answered; False where that took longer.

        >>> with Client(url, timeout_s=5) as client:
        ...     client.flush()
        True
        """
        here = self._here()
        return here.run(here.client.flush(timeout_s))

    def close(self, timeout_s: float = 30.0) -> int:
        """Flushes and ends; returns how many rewards were left, which are then lost. A second call does nothing.

        >>> Client(url).close()
        0
        """
        if self._closed or self._runner.pid != os.getpid():
            return 0
        self._closed = True
        left = self._runner.run(self._runner.client.close(timeout_s))
        self._runner.end()
        return left

    def put_policy(self, name: str, definition: Mapping[str, Any]) -> Changed:
        """Makes or changes a policy.

        >>> with Client(url, timeout_s=5) as client:
        ...     client.put_policy("made", {"algorithm": "ucb1", "arms": ["x", "y"]}).version > 0
        True
        """
        here = self._here()
        return here.run(here.client.put_policy(name, definition))

    def patch_policy(self, name: str, changes: Mapping[str, Any]) -> Changed:
        """Changes the members that `changes` has.

        >>> with Client(url, timeout_s=5) as client:
        ...     before = client.put_policy("patched", {"algorithm": "ucb1", "arms": ["x", "y"]})
        ...     client.patch_policy("patched", {"reward": {"window": "2h"}}).version > before.version
        True
        """
        here = self._here()
        return here.run(here.client.patch_policy(name, changes))

    def delete_policy(self, name: str) -> Changed:
        """Removes a policy for good.

        >>> with Client(url, timeout_s=5) as client:
        ...     before = client.put_policy("removed", {"algorithm": "ucb1", "arms": ["x", "y"]})
        ...     client.delete_policy("removed").version > before.version
        True
        """
        here = self._here()
        return here.run(here.client.delete_policy(name))

    def policy(self, name: str) -> Policy:
        """One policy as the server shows it.

        >>> with Client(url) as client:
        ...     client.policy("headlines").definition["algorithm"]
        'banker'
        """
        here = self._here()
        return here.run(here.client.policy(name))

    def policies(self) -> list[Policy]:
        """All policies.

        >>> with Client(url, timeout_s=5) as client:
        ...     "headlines" in [policy.name for policy in client.policies()]
        True
        """
        here = self._here()
        return here.run(here.client.policies())

    def put_item(
        self,
        policy: str,
        item: str,
        *,
        paused: bool = False,
        embedding: Sequence[float] | None = None,
        clusters: Sequence[int] | None = None,
    ) -> Changed:
        """Adds an item, or changes whether it is paused.

        >>> with Client(url, timeout_s=5) as client:
        ...     before = client.put_policy("grown", {"algorithm": "ucb1", "arms": ["x", "y"]})
        ...     client.put_item("grown", "z").version > before.version
        True
        """
        here = self._here()
        return here.run(here.client.put_item(policy, item, paused=paused, embedding=embedding, clusters=clusters))

    def pause_item(self, policy: str, item: str, paused: bool = True) -> Changed:
        """Stops showing an item, or shows it again.

        >>> with Client(url, timeout_s=5) as client:
        ...     before = client.put_policy("paused", {"algorithm": "ucb1", "arms": ["x", "y"]})
        ...     client.pause_item("paused", "x").version > before.version
        True
        """
        here = self._here()
        return here.run(here.client.pause_item(policy, item, paused))

    def delete_item(self, policy: str, item: str) -> Changed:
        """Removes an item.

        >>> with Client(url, timeout_s=5) as client:
        ...     before = client.put_policy("shrunk", {"algorithm": "ucb1", "arms": ["x", "y"]})
        ...     client.delete_item("shrunk", "x").version > before.version
        True
        """
        here = self._here()
        return here.run(here.client.delete_item(policy, item))

    def put_graph(self, policy: str, graph: bytes, *, keeps_clusters: bool = False) -> Changed:
        """Uploads the bytes of an npz file, as `croupier graph build` writes it.

        >>> with Client(url, timeout_s=5) as client:
        ...     before = client.put_policy("films", {"algorithm": "diag-linucb"})
        ...     uploaded = client.put_graph("films", graph)  # graph = Path("films.npz").read_bytes()
        ...     uploaded.version > before.version and uploaded.graph is not None
        True
        """
        here = self._here()
        return here.run(here.client.put_graph(policy, graph, keeps_clusters=keeps_clusters))

    def arms(self, policy: str, *, segment: str = "all", limit: int = 100, offset: int = 0) -> list[Arm]:
        """A page of arms.

        >>> with Client(url) as client:
        ...     [arm.id for arm in client.arms("headlines")]
        ['calm', 'loud', 'odd']
        """
        here = self._here()
        return here.run(here.client.arms(policy, segment=segment, limit=limit, offset=offset))

    def _here(self) -> _Runner:
        if self._runner.pid != os.getpid():  # a fork left the loop's thread in the parent
            with _after_fork:
                if self._runner.pid != os.getpid():
                    self._runner, self._closed = _Runner(self._base_url, self._options), False
        if self._closed:
            raise RuntimeError("this client is closed")
        return self._runner


_after_fork = threading.Lock()


def _new_lock() -> None:
    """The fork may have come while another thread of the parent held it."""
    global _after_fork
    _after_fork = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)
