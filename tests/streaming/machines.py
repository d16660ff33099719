"""Small shards for tests: a policy or two, events written by hand, time in hand."""

import numpy as np

from bandits.graph import Graph
from streaming import events, token
from streaming.contract import COLUMNS
from streaming.control import ControlRecord, GraphPut, PolicyPut, PolicySpec, RewardContract, to_json
from streaming.log import Record
from streaming.shard import Shard
from streaming.state import State
from tests.naive.streaming import NaiveShard

START_MS = 1_700_000_000_000
FILMS, GRAPH, TITLES = 1, 2, 3  # numbers of the control records that made them
WEIGHTS = np.array([30_000, 20_000, 15_535], np.uint16)


def graph(
    ids: tuple[str, ...] = ("a", "b", "c", "d"), lists: tuple[tuple[int, ...], ...] = ((0, 1), (1, 2, 3), (0, 3))
):
    indptr = np.cumsum([0, *map(len, lists)])
    items = np.array([j for each in lists for j in each], np.uint32)
    return Graph(np.zeros((len(lists), 0), np.float32), indptr, items, ids)


class Machine:
    """A shard and the records it was given. `films` is a Diag-LinUCB policy, `titles` a K-armed one."""

    def __init__(
        self, reward: RewardContract | None = None, half_life_s: float | None = None, algorithm: str = "thompson-beta"
    ):
        self.reward = reward or RewardContract(60_000, 0.0, "first", -10.0, 10.0)
        self.blobs = {"g": graph().to_bytes()}
        self.shard = Shard(0, 1, State(), self.blobs.__getitem__)
        self.records: list[Record] = []
        self.now_ms = START_MS
        self.n = self.decisions = 0
        self.control(PolicyPut("films", PolicySpec("diag-linucb", self.reward, {"half_life_s": half_life_s})))
        self.control(GraphPut("films", "g"))
        self.control(PolicyPut("titles", PolicySpec(algorithm, self.reward), ["x", "y"]))

    def give(self, data: bytes) -> None:
        self.records.append(Record(len(self.records), self.now_ms, data))
        self.shard.step(self.records[-1:])

    def control(self, record: ControlRecord) -> None:
        self.n += 1
        self.give(events.control_frame(self.n, to_json(record)))

    def decision(self, policy: int = FILMS, items: tuple[int, ...] = (0, 1, 2), sent: bool = True, **changes) -> bytes:
        """Makes a decision of `policy`, and gives it to the shard if `sent`; its payload."""
        k = len(items)
        context = token.Context(
            token.DIAG if policy == FILMS else token.ARMS, policy, 1 << 32 | self.decisions, self.now_ms,
            self.reward.window_ms, self.reward.default, token.AGGREGATIONS.index(self.reward.aggregation), 0, True,
            np.array(items, np.uint32), np.full(k, np.nan, np.float16),
        )  # fmt: skip
        if policy == FILMS:
            context = context._replace(lineage=GRAPH, clusters=np.arange(3, dtype=np.uint32), weights=WEIGHTS)
        payload = token.encode(context._replace(**changes))
        self.decisions += 1
        if sent:
            self.send(payload)
        return payload

    def send(self, payload: bytes) -> None:
        self.give(events.frame([events.decision(payload, token.decode(payload).decision & 0xFFFFFFFF)]))

    def answer(self, payload: bytes, slot: int, value: float, event: int = 0) -> str:
        """The outcome of one reward."""
        before = self.outcomes()
        self.give(events.frame([events.reward(payload, slot, value, event)]))
        after = self.outcomes()
        (outcome,) = [name for name in COLUMNS if after[name] != before[name]]
        return outcome

    def outcomes(self) -> dict[str, int]:
        tables = [self.state[name][0] for name in self.state.tables if name.startswith("outcomes/")]
        return dict(zip(COLUMNS, np.sum(tables, axis=0).tolist(), strict=True))

    @property
    def state(self) -> State:
        return self.shard.state

    @property
    def edges(self) -> np.ndarray:
        return self.state[f"edges/{FILMS}"]

    def reload(self) -> None:
        """What a crash does: the shard again from what a store holds."""
        parts = {name: self.state.part(name, 0) for name in self.state.tables}
        state = State()
        state.load(parts.values(), [])
        self.shard = Shard(0, 1, state, self.blobs.__getitem__)

    def replayed(self, batch: int) -> State:
        shard = Shard(0, 1, State(), self.blobs.__getitem__)
        for at in range(0, len(self.records), batch):
            shard.step(self.records[at : at + batch])
        return shard.state

    def twin(self) -> NaiveShard:
        twin = NaiveShard(0, 1, self.blobs.__getitem__)
        twin.run(self.records)
        return twin
