"""A seeded world around log, store and learners, in which anything may happen between any two steps."""

import itertools
from collections.abc import Callable

import numpy as np

from bandits.graph import Graph
from streaming import events, restore, token
from streaming.control import (
    ControlError,
    ControlRecord,
    ControlState,
    GraphPut,
    ItemDelete,
    ItemPut,
    PolicyDelete,
    PolicyPut,
    PolicySpec,
    Restore,
    RewardContract,
    SnapshotDrop,
    SnapshotTake,
    snapshot_label,
    to_json,
)
from streaming.errors import StaleCommit, StoreUnavailable
from streaming.learner import Learner
from streaming.log import CONTROL, Record
from streaming.log.memory import MemoryLog
from streaming.prepared import Here
from streaming.shard import Shard
from streaming.shards import shard_of_bank, shard_of_item
from streaming.state import State
from streaming.store import Manifest
from streaming.store.memory import MemoryStore

CLUSTERS, ITEMS = 6, 14


class Crash(Exception):
    """The process ends here: what it held in memory is gone, what the media hold stays."""


class Flaky:
    """A store or log that fails before or after any call, as the world does: crash, or unavailable with the call done
    or not done."""

    def __init__(self, inner, rng: np.random.Generator, rate: float) -> None:
        self._inner, self._rng, self._rate = inner, rng, rate

    def __getattr__(self, name: str):
        value = getattr(self._inner, name)
        if not callable(value) or name == "close":
            return value

        def call(*args, **kwargs):
            fate = self._rng.random()
            if fate < self._rate:
                raise Crash
            if fate < 1.5 * self._rate:
                raise StoreUnavailable("the world")
            result = value(*args, **kwargs)
            if fate > 1 - self._rate:
                raise Crash
            if fate > 1 - 1.5 * self._rate:
                raise StoreUnavailable("the world")
            return result

        return call


class Simulation:
    """One seed's world: `run()` does everything, then `shards()` are compared by the test."""

    def __init__(self, seed: int, steps: int = 60) -> None:
        self.rng = np.random.default_rng(seed)
        self.steps = steps
        self.now_ms = 1_700_000_000_000
        self.n_shards = int(self.rng.integers(1, 4))
        self.log = MemoryLog(self.n_shards, lambda: self.now_ms, id="log")
        self.store = MemoryStore(lambda: self.now_ms)
        self.store.create(Manifest("store", "log", self.n_shards, 1))
        self.n = 0
        self.policies: list[tuple[str, int, PolicySpec]] = []
        self.sent: list[tuple[bytes, int]] = []  # payloads that may be answered, with their item count
        self.frames: list[tuple[int, bytes]] = []  # decision frames, for repeats
        self.stream = itertools.count(1)
        self.current = [next(self.stream), next(self.stream)]
        self.sequence: dict[int, int] = {}
        self.shard_seq: dict[tuple[int, int], int] = {}
        self.learners: dict[int, list[Learner | None]] = {s: [None, None] for s in range(self.n_shards)}
        self.rewards_logged = [0] * self.n_shards
        self.crashes = 0
        self.lineage: dict[int, int] = {}
        self.catalogue = ControlState()  # what an agent knows
        self.restored: dict[int, list[int]] = {}  # number of a Restore -> the heads of its snapshot, by shard
        self.restored_policies: list[str] = []
        self.graph_version = 0

    # ---------------------------------------------------------------------------------------------------- control

    def control(self, record: ControlRecord) -> int:
        """Appends the record and its pointers; sometimes a crash leaves pointers out, which are sent again later."""
        self.n += 1
        data = events.control_frame(self.n, to_json(record))
        self.log.append([(CONTROL, data), *((shard, data) for shard in range(self.n_shards))])
        if self.rng.random() < 0.3:
            self.log.append([(int(self.rng.integers(self.n_shards)), data)])
        before = self.catalogue.encode()
        try:
            self.catalogue.apply(self.n, record)
        except ControlError:
            self.catalogue = ControlState.decode(before)
            self.catalogue.applied = self.n
        return self.n

    def graph(self, keep_items: bool = False) -> str:
        lists = [np.sort(self.rng.choice(ITEMS, 5, replace=False)) for _ in range(CLUSTERS)]
        indptr = np.arange(CLUSTERS + 1) * 5
        shift = 0 if keep_items else int(self.rng.integers(0, 4))
        ids = tuple(f"item{j + shift}" for j in range(ITEMS))
        graph = Graph(np.zeros((CLUSTERS, 0), np.float32), indptr, np.concatenate(lists).astype(np.uint32), ids)
        return self.store.put_blob(graph.to_bytes())

    def setup(self) -> None:
        rng = self.rng
        default = [None, 0.0, 0.25][int(rng.integers(3))]
        reward = RewardContract(20_000, default, str(rng.choice(["first", "last", "max", "sum"])), -5.0, 5.0)
        half_life = None if rng.random() < 0.5 else float(rng.choice([1.0, 7.0, 100.0]))
        spec = PolicySpec("diag-linucb", reward, {"half_life_s": half_life})
        number = self.control(PolicyPut("films", spec))
        self.lineage[number] = self.control(GraphPut("films", self.graph(keep_items=True)))
        self.policies.append(("films", number, spec))
        for name, algorithm, parameters in (
            ("banker", "banker", {}),
            ("classic", "banker", {"rule": "classic", "max_outstanding": 16}),
            ("beta", "thompson-beta", {}),
        ):
            contract = reward if name != "classic" else RewardContract(20_000, default, "first", -5.0, 5.0)
            spec = PolicySpec(algorithm, contract, parameters, max_segments=3)
            number = self.control(PolicyPut(name, spec, ["a", "b", "c", "d"]))
            self.policies.append((name, number, spec))

        self.control(SnapshotTake("x"))

    def meddle(self) -> None:
        """One change of the catalogue while everything runs."""
        kind = int(self.rng.integers(11))
        films = self.policies[0][1]
        if kind == 0:
            self.control(GraphPut("films", self.graph(), keeps_clusters=True))
        elif kind == 1:
            self.lineage[films] = self.control(GraphPut("films", self.graph()))
        elif kind == 2:
            self.control(ItemPut("beta", f"new{self.n}"))
            self.control(ItemPut("banker", f"new{self.n}"))
        elif kind == 3:
            self.control(ItemDelete("beta", "b"))
        elif kind == 4:
            self.control(ItemPut("nowhere", "x"))
        elif kind == 5 and self.rng.random() < 0.2:
            self.control(PolicyDelete("beta"))
        elif kind == 6:
            self.control(SnapshotTake(str(self.rng.choice(["x", "y", "z"]))))
        elif kind == 7 and self.rng.random() < 0.3:
            self.control(SnapshotDrop(str(self.rng.choice(["x", "y", "z"]))))
        else:
            self.restore(str(self.rng.choice([name for name, _, _ in self.policies])))

    def restore(self, name: str) -> None:
        """What an agent does: a blob for each shard from a snapshot, if there is one that is whole; then the record."""
        if not self.catalogue.labels:
            return
        label = str(self.rng.choice(sorted(self.catalogue.labels)))
        stored = snapshot_label(label, self.catalogue.labels[label])
        copies = [[info for info in self.store.snapshots(s) if info.label == stored] for s in range(self.n_shards)]
        first = Shard(0, self.n_shards, State(), self.store.get_blob)
        first.step(self.records(0))
        now = first.control.policies.get(name)
        if now is None or not all(copies):
            return
        blobs = []
        for shard, (info,) in enumerate(copies):
            image = self.store.load_snapshot(info.name)
            state = State()
            state.load(image.parts.values(), [])
            then = ControlState.decode(state["control"].tobytes()).policies.get(name)
            try:
                restore.check(then, now, label)
            except restore.NotRestorable:
                return
            numbers = first.state[f"numbers/{now.number}"][:, 0] if now.graph else np.empty(0, np.uint32)
            here = Here(shard, self.n_shards, state, self.store.get_blob)
            blobs.append(self.store.put_blob(restore.make_blob(here, then, now, numbers)))
        if self.rng.random() < 0.2:  # somebody is quicker
            self.control(GraphPut("films", self.graph(), keeps_clusters=True))
        n = self.control(Restore(name, label, now.number, now.graph.number if now.graph else 0, blobs))
        self.restored[n] = [info.head for (info,) in copies]
        self.restored_policies.append(name)

    # ------------------------------------------------------------------------------------------------------- events

    def decide(self) -> None:
        """A frame of decisions for each shard; some are lost on the way, some frames come twice."""
        rng = self.rng
        worker = int(rng.integers(2))
        batches: dict[int, list[bytes]] = {}
        for _ in range(int(rng.integers(1, 6))):
            payload, shards, segment = self._decision(worker)
            self.sent.append(payload)
            lost = rng.random() < 0.05
            for shard in shards:
                key = (self.current[worker], shard)
                seq = self.shard_seq[key] = self.shard_seq.get(key, -1) + 1
                if not lost:
                    batches.setdefault(shard, []).extend([*segment, events.decision(payload, seq)])
        for shard, batch in batches.items():
            data = events.frame(batch)
            self.frames.append((shard, data))
            self.log.append([(shard, data)])
            if rng.random() < 0.1:
                self.log.append([(shard, data)])
        if rng.random() < 0.05:
            self.current[worker] = next(self.stream)

    def _decision(self, worker: int) -> tuple[bytes, set[int], list[bytes]]:
        rng = self.rng
        _, number, spec = self.policies[int(rng.integers(len(self.policies)))]
        stream = self.current[worker]
        seq = self.sequence[stream] = self.sequence.get(stream, -1) + 1
        contract = spec.reward
        k = int(rng.integers(1, 4))
        context = token.Context(
            token.DIAG if spec.is_diag else token.ARMS,
            number,
            stream << 32 | seq,
            self.now_ms - int(rng.integers(0, 50)),
            contract.window_ms,
            contract.default,
            token.AGGREGATIONS.index(contract.aggregation),
            int(rng.integers(3)),
            bool(rng.random() < 0.9),
            rng.choice(ITEMS if spec.is_diag else 4, k, replace=False).astype(np.uint32),
            np.full(k, 0.5, np.float16),
        )
        if spec.is_diag:
            m = int(rng.integers(1, 4))
            clusters = rng.choice(CLUSTERS, m, replace=False).astype(np.uint32)
            weights = rng.integers(0, 65536, m).astype(np.uint16)
            context = context._replace(lineage=self.lineage[number], clusters=clusters, weights=weights)
            return token.encode(context), {shard_of_item(number, int(j), self.n_shards) for j in context.items}, []
        segment = f"segment{rng.integers(5)}"
        bank = token.segment_key(segment) if rng.random() < 0.8 else 0
        context = context._replace(bank=bank, p=0.25, w=0.75, a=0.0, c=0.0)
        named = [events.segment(number, bank, segment)] if bank and rng.random() < 0.3 else []
        return token.encode(context), {shard_of_bank(number, bank, self.n_shards)}, named

    def answer(self) -> None:
        """A frame of rewards: repeats, corrections, late ones, absurd ones, in any order."""
        rng = self.rng
        batches: dict[int, list[bytes]] = {}
        for _ in range(int(rng.integers(1, 8))):
            if not self.sent:
                return
            payload = self.sent[int(rng.integers(max(0, len(self.sent) - 40), len(self.sent)))]
            context = token.decode(payload)
            slot = int(rng.integers(len(context.items)))
            if context.kind == token.DIAG:
                shard = shard_of_item(context.policy, int(context.items[slot]), self.n_shards)
            else:
                shard = shard_of_bank(context.policy, context.bank, self.n_shards)
            value = float(rng.choice([0.0, 1.0, 0.5, -1.0, 3.0, 1e7]))
            event_id = int(rng.integers(1, 4)) if rng.random() < 0.5 else 0
            for _ in range(2 if rng.random() < 0.1 else 1):
                batches.setdefault(shard, []).append(events.reward(payload, slot, value, event_id))
        for shard, batch in batches.items():
            self.rewards_logged[shard] += len(batch)
            self.log.append([(shard, events.frame(batch))])

    def poison(self) -> None:
        """Bytes that are no record, and a sound frame with one broken event."""
        rng = self.rng
        shard = int(rng.integers(self.n_shards))
        if rng.random() < 0.5 or not self.sent:
            self.log.append([(shard, rng.bytes(int(rng.integers(0, 60))))])
            return
        one = events.reward(self.sent[-1], 0, 1.0)
        broken = bytearray(one)
        broken[int(rng.integers(32, len(one)))] ^= 1
        self.log.append([(shard, events.frame([bytes(broken)]))])

    # ------------------------------------------------------------------------------------------------------ learners

    def poll(self, shard: int, which: int) -> None:
        """One of two learners that both believe to own the shard takes a step; anything may fail."""
        learner = self.learners[shard][which]
        rate = 0.04
        try:
            if learner is None:
                learner = Learner(
                    shard,
                    Flaky(self.log, self.rng, rate / 4),
                    Flaky(self.store, self.rng, rate),
                    lambda: self.rng.bytes(16),
                )
                self.learners[shard][which] = learner
            learner.poll(int(self.rng.integers(1, 6)))
            if self.rng.random() < 0.1 and learner.shard is not None:
                learner.fold()
            if self.rng.random() < 0.05 and learner.shard is not None:
                learner.snapshot()
            if learner.wants_labels:
                learner.sync_labels()
        except Crash:
            self.crashes += 1
            self.learners[shard][which] = None
        except (StaleCommit, StoreUnavailable):
            pass

    def run(self) -> None:
        self.setup()
        rng = self.rng
        for _ in range(self.steps):
            self.now_ms += int(rng.choice([0, 5, 400, 3000, 30_000], p=[0.3, 0.4, 0.2, 0.08, 0.02]))
            actions: list[Callable[[], None]] = [self.decide, self.answer, self.meddle, self.poison]
            actions[int(rng.choice(4, p=[0.46, 0.36, 0.14, 0.04]))]()
            for _ in range(int(rng.integers(0, 4))):
                self.poll(int(rng.integers(self.n_shards)), int(rng.random() < 0.2))
        for shard in range(self.n_shards):
            learner = Learner(shard, self.log, self.store, lambda: self.rng.bytes(16))
            while learner.poll(3):
                pass

    # -------------------------------------------------------------------------------------------------- the verdict

    def records(self, shard: int) -> list[Record]:
        return self.log.read(shard, 0, 10**6, 1 << 40)

    def stored(self, shard: int) -> State:
        image = self.store.load(shard)
        state = State()
        state.load(image.parts.values(), [commit.delta for commit in image.deltas])
        return state

    def replayed(self, shard: int, batch: int) -> State:
        machine = Shard(shard, self.n_shards, State(), self.store.get_blob)
        records = self.records(shard)
        for at in range(0, len(records), batch):
            machine.step(records[at : at + batch])
        return machine.state
