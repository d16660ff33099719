"""A small server that speaks croupier's contract, for tests of the drivers: real HTTP on a real port, state in memory.

It shows the arm with the best mean so far (each arm first once), learns the default at once and the answer as the
difference, and keeps the reward contract: window, duplicates, outcomes. `Tiny` holds the state, so that the server
can be stopped and started over it, as a restart would.
"""

import asyncio
import io
import itertools
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web


@dataclass
class Policy:
    window_s: float
    default: float | None
    ids: list[str]
    version: int
    plays: Any = field(default_factory=lambda: defaultdict(float))
    rewards: Any = field(default_factory=lambda: defaultdict(float))
    epsilon: float = 0.1


@dataclass
class Tiny:
    """State of the server, and the faults it is asked for."""

    visible_after_s: float = 0.0  # how long a reward takes to show
    pause_s: float = 0.0  # every answer waits
    drop_answers: int = 0  # carry out so many feedback requests and close without an answer
    doubt: int = 0  # carry out so many feedback requests and answer 503, in doubt
    refuse: Counter[str] = field(default_factory=Counter)  # path -> so many 503 answers
    forget: int = 0  # rewards that are accepted and then not counted: a server that loses acknowledged rewards
    policies: dict[str, Policy] = field(default_factory=dict)
    decisions: dict[str, tuple[Policy, str, list[str], float]] = field(default_factory=dict)
    answered: set[tuple[str, str]] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    port: int = 0

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._rng = np.random.default_rng(1)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> "Tiny":
        app = web.Application(client_max_size=64 << 20, middlewares=[self._faults])
        app.router.add_put("/v1/policies/{name}", self._put_policy)
        app.router.add_put("/v1/policies/{name}/graph", self._put_graph)
        app.router.add_post("/v1/recommend", self._recommend)
        app.router.add_post("/v1/feedback", self._feedback)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @web.middleware
    async def _faults(self, request: web.Request, handler: Any) -> Any:
        self.requests[request.path] += 1
        if self.pause_s:
            await asyncio.sleep(self.pause_s)
        if self.refuse[request.path] > 0:
            self.refuse[request.path] -= 1
            return web.json_response({"title": "Unavailable"}, status=503, headers={"Retry-After": "0.02"})
        answer = await handler(request)
        if request.path == "/v1/feedback" and self.drop_answers > 0:
            self.drop_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        if request.path == "/v1/feedback" and self.doubt > 0:
            self.doubt -= 1
            return web.json_response(
                {"type": "urn:croupier:problem:in-doubt"}, status=503, headers={"Retry-After": "0.02"}
            )
        return answer

    async def _put_policy(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, contract = request.match_info["name"], body["reward"]
        if body["algorithm"] == "unheard-of":
            return web.json_response({"field": "algorithm", "detail": "no such algorithm"}, status=422)
        self.policies[name] = Policy(
            float(contract["window"].removesuffix("s")), contract["default"], body.get("arms", []), next(self._numbers)
        )
        return web.json_response({"name": name}, status=201)

    async def _put_graph(self, request: web.Request) -> web.Response:
        graph = np.load(io.BytesIO(await request.read()))
        assert graph["indptr"][-1] == len(graph["items"])
        assert graph["items"].max() < len(graph["ids"])
        self.policies[request.match_info["name"]].ids = graph["ids"].tolist()
        return web.json_response({}, status=202)

    async def _recommend(self, request: web.Request) -> web.Response:
        body = await request.json()
        policy = self.policies[body["policy"]]
        user = body["user"]
        group = user.get("segment") or str(user.get("clusters", "everyone"))
        means = [
            policy.rewards[group, i] / policy.plays[group, i] if policy.plays[group, i] else 1.0 for i in policy.ids
        ]
        if body.get("mode") != "exploit" and self._rng.random() < policy.epsilon:
            means = list(self._rng.random(len(means)))
        order = np.argsort(-np.array(means), kind="stable")[: body["k"]]
        shown = [policy.ids[i] for i in order]
        decision_id = f"d{next(self._numbers)}"
        self.decisions[decision_id] = policy, group, shown, time.monotonic()
        if policy.default is not None:
            for i in shown:
                policy.plays[group, i] += 1
                policy.rewards[group, i] += policy.default
        items = [{"id": i, "score": means[j], "propensity": None} for i, j in zip(shown, order, strict=True)]
        return web.json_response(
            {"decision_id": decision_id, "policy": body["policy"], "version": policy.version, "items": items}
        )

    async def _feedback(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"results": [self._judge(row) for row in body.get("feedback", [body])]}, status=202)

    def _judge(self, row: dict[str, Any]) -> dict[str, str]:
        if row["decision_id"] not in self.decisions:
            return {"status": "refused", "reason": "bad-token", "field": "decision_id"}
        policy, group, _, at = self.decisions[row["decision_id"]]
        key = row["decision_id"], row["item"]
        if self.forget > 0:
            self.forget -= 1
        elif time.monotonic() > at + policy.window_s:
            self.outcomes["late"] += 1
        elif key in self.answered:
            self.outcomes["duplicate"] += 1
        else:
            self.answered.add(key)
            self.outcomes["applied"] += 1
            asyncio.get_running_loop().call_later(
                self.visible_after_s, self._learn, policy, (group, row["item"]), row["reward"]
            )
        return {"status": "accepted"}

    @staticmethod
    def _learn(policy: Policy, arm: tuple[str, str], reward: float) -> None:
        policy.plays[arm] += 2 if policy.default is None else 0  # 2: the mean then differs from an unseen arm's
        policy.rewards[arm] += reward - (policy.default or 0.0)

    async def _metrics(self, _: web.Request) -> web.Response:
        name = "croupier_reward_outcomes"
        lines = [f"# TYPE {name} counter"]
        lines += [f'{name}_total{{outcome="{outcome}",shard="0"}} {n}' for outcome, n in self.outcomes.items()]
        return web.Response(text="\n".join(lines) + "\n")
