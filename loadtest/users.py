"""Simulated users over HTTP: ask, click or not as the world says, answer later, as people do.

What a user does: a decision is asked for; each item of the slate is clicked with its true chance; the click is
reported after a drawn delay. Some reports come twice, some after the window, some never. All is drawn from one seed.

Data: `pending`, a heap of rewards (due, number, Reward) between the users who clicked and the senders; `ledger`, the
counts (loadtest.ledger). Requests that meet a server that is away are sent again until `patience_s` has passed:
asking again is harmless, and a reward is learned once however often it is sent.
"""

import asyncio
import heapq
import itertools
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from bandits.worlds import Delay, geometric
from loadtest.client import Address, Answer, Connection, Lost, Unreachable
from loadtest.ledger import Ledger, Visit, outcomes
from loadtest.worlds import World

MARGIN_S = 1.0  # how far a reward keeps from the end of its window, so that its outcome is certain


@dataclass(frozen=True)
class Habits:
    """How many users there are and what they do with their answers; shares are of clicks (or answers)."""

    users: int = 16  # at the same time, each on its own connection
    visits_per_s: float | None = None  # all users together; None: the next as soon as the last is answered
    delay: Delay = field(default_factory=lambda: geometric(1000.0))  # choice to report, ms; -1: never reported
    duplicate_share: float = 0.02  # reported again, soon after the first was accepted
    late_share: float = 0.01  # reported after the window has closed
    answer_zeros: bool = False  # also report what was not clicked, as 0 (for policies without a default reward)
    batch: int = 1  # most rewards in one feedback request
    senders: int = 4  # connections that carry feedback
    exploit_share: float = 0.0  # of decisions: asked with mode exploit, by which only diag-linucb and Thompson learn
    patience_s: float = 30.0  # how long a request is repeated while the server is away

    def __post_init__(self) -> None:
        for name in ("duplicate_share", "late_share", "exploit_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share: from 0 to 1")
        if self.users < 1 or self.senders < 1 or self.batch < 1:
            raise ValueError("users, senders and batch must be at least 1")


@dataclass(frozen=True)
class Reward:
    """One report to be sent. `kind`: first, again (a duplicate) or late."""

    decision_id: str
    item: str
    reward: float
    kind: str
    closes: float  # time.monotonic() at which the window closes, by the user's clock

    @property
    def outcome(self) -> str:
        return {"first": "applied", "again": "duplicate", "late": "late"}[self.kind]


class Item(msgspec.Struct):
    id: str
    score: float


class Decision(msgspec.Struct):
    decision_id: str
    items: list[Item]


class Verdict(msgspec.Struct):
    status: str
    reason: str | None = None


class Results(msgspec.Struct):
    results: list[Verdict]


_DECISION = msgspec.json.Decoder(Decision)
_RESULTS = msgspec.json.Decoder(Results)


class SetupRefused(RuntimeError):
    """The server did not take the policy or the graph."""


async def set_up(url: str, world: World, headers: Mapping[str, str] | None = None, patience_s: float = 30.0) -> None:
    """Create the world's policy (and graph) on the server; raises SetupRefused with the server's own words."""
    async with Connection(Address.of(url), headers) as connection:
        puts = [(f"/v1/policies/{world.policy}", msgspec.json.encode(world.spec), "application/json")]
        if world.graph is not None:
            puts.append((f"/v1/policies/{world.policy}/graph", world.graph, "application/octet-stream"))
        deadline = time.monotonic() + patience_s
        for path, body, content_type in puts:
            while True:
                answer = await connection.request("PUT", path, body, content_type=content_type, timeout_s=60)
                # Just started: the log is not there yet, or (404) not every worker shows the policy of the graph.
                if answer.status not in (404, 429, 503) or time.monotonic() > deadline:
                    break
                await asyncio.sleep(min(answer.retry_after_s or 0.1, 1.0))
            if not 200 <= answer.status < 300:
                raise SetupRefused(f"PUT {path} answered {answer.status}: {answer.body.decode(errors='replace')}")
        # 202 means that not every worker showed it yet.
        ask = b'{"policy":%b,"user":%b,"k":1}' % (msgspec.json.encode(world.policy), world.users[0])
        while (answer := await connection.request("POST", "/v1/recommend", ask)).status != 200:
            if time.monotonic() > deadline:
                words = answer.body.decode(errors="replace")
                raise SetupRefused(
                    f"policy {world.policy!r} does not answer after {patience_s:g} s: {answer.status} {words}"
                )
            await asyncio.sleep(0.05)


async def server_outcomes(url: str, headers: Mapping[str, str] | None = None) -> Counter[str]:
    """The reward outcomes the server has counted so far."""
    async with Connection(Address.of(url), headers) as connection:
        answer = await connection.request("GET", "/metrics")
        if answer.status != 200:
            raise Unreachable(f"GET /metrics answered {answer.status}")
        return outcomes(answer.body.decode())


async def settled_outcomes(
    url: str, before: Counter[str], wanted: int, headers: Mapping[str, str] | None = None, quiet_s: float = 3.0
) -> Counter[str]:
    """The outcomes once `wanted` more rewards are counted, or nothing has moved for `quiet_s`.

    What the learner still has before it at the end of a run is counted within moments; what is missing after a quiet
    time is missing. Extra counts would come in the same moments, so one more look is taken after the last."""
    last, moved = await server_outcomes(url, headers), time.monotonic()
    while True:
        complete = sum((last - before).values()) >= wanted
        await asyncio.sleep(0.4)
        now = await server_outcomes(url, headers)
        if now != last:
            last, moved = now, time.monotonic()
        elif complete or time.monotonic() > moved + quiet_s:
            return now


@dataclass
class Crowd:
    """The users of one world, for as long as `run` lasts."""

    url: str
    world: World
    habits: Habits = Habits()
    seed: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self._address = Address.of(self.url)
        self._rng = np.random.default_rng(self.seed)
        self._pending: list[tuple[float, int, Reward]] = []
        self._number = itertools.count()
        self._next_visit = 0.0
        self._ending = False  # no more visits
        self._visited = False  # and the last of them is over
        self._closed = False  # no more rewards either
        self._asks = [
            b'{"policy":%b,"user":%b,"k":%d}' % (msgspec.json.encode(self.world.policy), user, self.world.k)
            for user in self.world.users
        ]

    async def run(self, seconds: float | None, *, drain_s: float | None = None) -> Ledger:
        """Visits for `seconds` (None: until cancelled), then what is still to be reported, for at most `drain_s`
        (None: until the last late reward has been sent)."""
        self._start = self._next_visit = time.monotonic()
        visitors = [asyncio.create_task(self._visitor()) for _ in range(self.habits.users)]
        senders = [asyncio.create_task(self._sender()) for _ in range(self.habits.senders)]
        tasks = [*visitors, *senders]
        try:
            await self._unless_failed(tasks, visitors, seconds)
            self.stop()
            await self._unless_failed(tasks, visitors, None)
            self._visited = True
            await self._unless_failed(tasks, senders, drain_s)
            self._closed = True
            await self._unless_failed(tasks, senders, None)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.ledger.unsent += len(self._pending)
        return self.ledger

    def stop(self) -> None:
        """No more visits; `run` goes on to the rewards that are still to be reported."""
        self._ending = True

    @staticmethod
    async def _unless_failed(tasks: list[asyncio.Task[None]], until: list[asyncio.Task[None]], s: float | None) -> None:
        """Wait until the tasks of `until` are done or `s` seconds have passed; a failure of any task is raised here."""
        deadline = None if s is None else time.monotonic() + s
        while not all(task.done() for task in until) and (deadline is None or time.monotonic() < deadline):
            waiting = [task for task in tasks if not task.done()]
            left = None if deadline is None else deadline - time.monotonic()
            done, _ = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    # Asking and clicking.
    async def _visitor(self) -> None:
        async with Connection(self._address, self.headers) as connection:
            while await self._turn():
                user = int(self._rng.integers(len(self._asks)))
                ask = self._asks[user]
                if self.habits.exploit_share and self._rng.random() < self.habits.exploit_share:
                    ask = ask[:-1] + b',"mode":"exploit"}'
                answer, _ = await self._insist(connection, "recommend", ask)
                if answer is not None and answer.status == 200:
                    self._look(user, _DECISION.decode(answer.body))

    async def _turn(self) -> bool:
        """Wait for the next visit's time; False when there are no more. After a pause of the server the visits
        missed are not made up for."""
        rate = self.habits.visits_per_s
        if rate is not None and not self._ending:
            now = time.monotonic()
            self._next_visit = max(self._next_visit, now - 0.1) + 1 / rate
            if self._next_visit > now:
                await asyncio.sleep(self._next_visit - now)
        return not self._ending

    def _look(self, user: int, decision: Decision) -> None:
        """Click or not, and note what is to be reported when."""
        world, rng, ledger = self.world, self._rng, self.ledger
        now = time.monotonic()
        chances = []
        for item in decision.items:
            index = world.index.get(item.id)
            if index is None:
                ledger.unknown_items += 1
                continue
            chances.append(float(world.rates[user, index]))
        clicked = (rng.random(len(chances)) < chances).tolist() if chances else []
        known = [item for item in decision.items if item.id in world.index]
        for item, click in zip(known, clicked, strict=True):
            if click or self.habits.answer_zeros:
                self._plan(decision.decision_id, item.id, float(click), now)
        n = len(chances)
        ledger.decisions += 1
        ledger.add_visit(
            Visit(now - self._start, n, sum(clicked), sum(chances), n * world.random[user], n * world.best[user])
        )

    def _plan(self, decision_id: str, item: str, value: float, now: float) -> None:
        habits, closes = self.habits, now + self.world.window_s
        delay_ms = int(habits.delay.sample(self._rng, 1)[0])
        if delay_ms < 0:
            self.ledger.never_answered += 1
            return
        due = now + delay_ms / 1000
        late = self._rng.random() < habits.late_share or due > closes - MARGIN_S
        kind = "late" if late else "first"
        self._push(closes + MARGIN_S if late else due, Reward(decision_id, item, value, kind, closes))

    def _push(self, due: float, reward: Reward) -> None:
        heapq.heappush(self._pending, (due, next(self._number), reward))

    # Reporting.
    async def _sender(self) -> None:
        async with Connection(self._address, self.headers) as connection:
            while not self._closed and (self._pending or not self._visited):
                now = time.monotonic()
                rewards: list[Reward] = []
                while self._pending and self._pending[0][0] <= now and len(rewards) < self.habits.batch:
                    rewards.append(heapq.heappop(self._pending)[2])
                if rewards:
                    await self._report(connection, rewards)
                else:
                    await asyncio.sleep(0.01)

    async def _report(self, connection: Connection, rewards: list[Reward]) -> None:
        ledger = self.ledger
        rows = [{"decision_id": r.decision_id, "item": r.item, "reward": r.reward} for r in rewards]
        body = msgspec.json.encode(rows[0] if len(rows) == 1 else {"feedback": rows})
        ledger.sends.update(r.kind for r in rewards)
        answer, lost = await self._insist(connection, "feedback", body)
        accepted = answer is not None and 200 <= answer.status < 300
        for r in rewards if lost else ():
            # Lost tries may have arrived. The first to arrive is applied; where a later try was accepted, that one
            # is already counted as applied, and what arrived besides it are duplicates.
            repeats = "late" if r.kind == "late" else "duplicate"
            ledger.uncertain[repeats] += lost if accepted else lost - 1
            if not accepted:
                ledger.uncertain[r.outcome] += 1
        if not accepted:
            return
        assert answer is not None
        now = time.monotonic()
        verdicts = _RESULTS.decode(answer.body).results
        assert len(verdicts) == len(rewards), "a verdict for each reward"
        for r, verdict in zip(rewards, verdicts, strict=True):
            ledger.verdicts[verdict.status, verdict.reason or ""] += 1
            if verdict.status == "accepted":
                self._accepted(r, now)

    def _accepted(self, r: Reward, now: float) -> None:
        ledger = self.ledger
        if r.kind != "late" and now > r.closes - MARGIN_S / 2:
            # The server kept it so long that the window may have closed meanwhile: one of the two.
            ledger.uncertain[r.outcome] += 1
            ledger.uncertain["late"] += 1
            ledger.either += 1
            return
        ledger.expected[r.outcome] += 1
        again_at = now + float(self._rng.exponential(0.2))
        if r.kind == "first" and again_at < r.closes - MARGIN_S and self._rng.random() < self.habits.duplicate_share:
            self._push(again_at, replace(r, kind="again"))

    async def _insist(self, connection: Connection, route: str, body: bytes) -> tuple[Answer | None, int]:
        """POST until there is an answer that is not "come again", for at most `patience_s` (then None), and how many
        tries were sent and may or may not have been carried out."""
        ledger, lost, wait_s = self.ledger, 0, 0.05
        give_up = time.monotonic() + self.habits.patience_s
        while True:
            pause_s = None
            try:
                answer = await connection.request("POST", f"/v1/{route}", body)
            except Lost:
                ledger.lost[route] += 1
                lost += 1
            except Unreachable:
                ledger.unreachable[route] += 1
            else:
                ledger.statuses[route, answer.status] += 1
                if answer.status not in (429, 503):
                    return answer, lost + (answer.status >= 500)
                lost += b":in-doubt" in answer.body  # of any other 503 the contract says that nothing was done
                pause_s = answer.retry_after_s
            if time.monotonic() > give_up:
                ledger.gave_up[route] += 1
                return None, lost
            ledger.retries[route] += 1
            await asyncio.sleep(wait_s if pause_s is None else min(pause_s, 5.0))
            wait_s = min(2 * wait_s, 1.0)
