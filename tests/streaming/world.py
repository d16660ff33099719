"""A small world of two policies whose log and store tests write as an agent and learners would."""

from pathlib import Path

import numpy as np

from bandits.graph import Graph
from streaming import events, token
from streaming.control import GraphPut, ItemPut, KeyAdd, PolicyPut, PolicySpec, RewardContract, to_json
from streaming.learner import Learner, trim
from streaming.log import CONTROL, open_log
from streaming.place import Place, state_of
from streaming.shards import shard_of_bank, shard_of_item
from streaming.store import Manifest, open_store

START_MS = 1_700_000_000_000
ITEMS, CLUSTERS = 12, 4


class World:
    """A place with two policies, written as an agent and learners would; `fresh=False` opens one that is there."""

    def __init__(
        self, at: Path | Place, shards: int = 2, half_life_s: float | None = None, fresh: bool = True,
        start_ms: int = START_MS, with_graph: bool = True,
    ) -> None:  # fmt: skip
        self.place = at if isinstance(at, Place) else Place.of_folder(at)
        self.now_ms, self.rng = start_ms, np.random.default_rng(5)
        if isinstance(at, Path):
            self.data = at
            at.mkdir(exist_ok=True)
        self.log = open_log(self.place.log, shards if fresh else None, lambda: self.now_ms, write=True)
        self.store = open_store(self.place.store, lambda: self.now_ms)
        self.shards = self.log.shards
        self.sent: list[bytes] = []
        self.sequence = 0
        self.stream = 1 if fresh else 2
        self.shard_seq = [0] * self.shards
        self.n = 0
        if fresh:
            self.store.create(Manifest("s", self.log.id, shards, 1))
            reward = RewardContract(60_000, 0.0, "last", -5.0, 5.0)
            self.control(KeyAdd(1, "ab" * 16, start_ms))
            self.control(PolicyPut("films", PolicySpec("diag-linucb", reward, {"half_life_s": half_life_s})))
            if with_graph:
                self.control(GraphPut("films", self.store.put_blob(graph().to_bytes())))
            else:
                self.control(ItemPut("nowhere", "y"))
            self.control(PolicyPut("titles", PolicySpec("thompson-beta", reward), ["a", "b", "c"]))
            self.control(ItemPut("nowhere", "x"))
        self.learners = [Learner(shard, self.log, self.store) for shard in range(self.shards)]

    def control(self, record, pointers: bool = True) -> int:
        self.n = self.log.bounds(CONTROL)[1] + 1
        data = events.control_frame(self.n, to_json(record))
        self.log.append([(CONTROL, data), *((shard, data) for shard in range(self.shards) if pointers)])
        return self.n

    def decide(self) -> None:
        items = self.rng.choice(ITEMS, 3, replace=False).astype(np.uint32)
        clusters = self.rng.choice(CLUSTERS, 2, replace=False).astype(np.uint32)
        films = token.Context(
            token.DIAG, 2, self.stream << 32 | self.sequence, self.now_ms, 60_000, 0.0, token.LAST, 0, True, items,
            np.full(3, 0.5, np.float16), 3, clusters, np.array([40_000, 25_535], np.uint16),
        )  # fmt: skip
        bank = token.segment_key(f"segment{self.rng.integers(6)}")
        titles = token.Context(
            token.ARMS, 4, self.stream << 32 | (self.sequence + 1), self.now_ms, 60_000, 0.0, token.LAST, 0, True,
            self.rng.choice(3, 1).astype(np.uint32), np.full(1, 0.5, np.float16), bank=bank, p=0.3, w=1.0,
        )  # fmt: skip
        self.sequence += 2
        for context in (films, titles):
            payload = token.encode(context)
            for shard in {self.owner(context, slot) for slot in range(len(context.items))}:
                self.log.append([(shard, events.frame([events.decision(payload, self.shard_seq[shard])]))])
                self.shard_seq[shard] += 1
            self.sent.append(payload)

    def owner(self, context: token.Context, slot: int) -> int:
        if context.kind == token.DIAG:
            return shard_of_item(context.policy, int(context.items[slot]), self.shards)
        return shard_of_bank(context.policy, context.bank, self.shards)

    def answer(self, payload: bytes, slot: int, value: float, event: int = 0) -> None:
        shard = self.owner(token.decode(payload), slot)
        self.log.append([(shard, events.frame([events.reward(payload, slot, value, event)]))])

    def run(self, rounds: int = 30) -> None:
        for _ in range(rounds):
            self.now_ms += int(self.rng.integers(1, 2_000))
            self.decide()
            payload = self.sent[int(self.rng.integers(max(0, len(self.sent) - 20), len(self.sent)))]
            slot = int(self.rng.integers(len(token.decode(payload).items)))
            self.answer(payload, slot, float(self.rng.choice([0.0, 1.0, 9.0])), int(self.rng.integers(1, 3)))

    def learn(self) -> None:
        for learner in self.learners:
            while learner.poll(7):
                pass

    def snapshot(self, keep: int = 2) -> None:
        for learner in self.learners:
            learner.snapshot(keep)
        trim(self.log, self.store)

    def states(self):
        return [state_of(self.store.load(shard)) for shard in range(self.shards)]

    def close(self) -> None:
        self.log.close()
        self.store.close()


def graph() -> Graph:
    lists = [np.arange(c, ITEMS, 2, dtype=np.uint32)[:5] for c in range(CLUSTERS)]
    return Graph(
        np.eye(CLUSTERS, 3, dtype=np.float32),
        np.cumsum([0, *map(len, lists)]),
        np.concatenate(lists),
        tuple(f"film{j}" for j in range(ITEMS)),
    )
