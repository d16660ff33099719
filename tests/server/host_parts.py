"""The parts of one host in one thread, with the clock in hand: log and store (in memory unless they are given),
learners, replica, a worker."""

from pathlib import Path

import numpy as np

from bandits.graph import Graph
from server.feedback import judge
from server.intake import Intake
from server.outbox import Outbox, unpack
from server.recommender import Recommender
from server.replica import Replica
from server.schemas import Decision, FeedbackRow, RecommendRequest, Verdict
from server.shared import HostFile, RunFolder
from server.views import Views
from streaming import events
from streaming.control import DIAG_LINUCB, ControlRecord, GraphPut, KeyAdd, PolicyPut, PolicySpec, to_json
from streaming.learner import Learner
from streaming.log import CONTROL, EventLog, open_log
from streaming.store import Manifest, ParameterStore, open_store

KEY = KeyAdd(0, "11" * 32, 0)


class Host:
    """`now_ms` is everybody's time. Nothing moves by itself: `learn`, `follow`."""

    def __init__(
        self,
        path: Path,
        shards: int = 1,
        seed: int = 1,
        log: EventLog | None = None,
        store: ParameterStore | None = None,
        workers: int = 1,
    ) -> None:
        self.now_ms = 1_000_000
        self.log = log or open_log("memory:", shards, self.clock)
        self.store = store or open_store("memory:", self.clock)
        manifest = Manifest("s", self.log.id, shards, 1)
        self.store.create(manifest)
        self.learners = [Learner(shard, self.log, self.store) for shard in range(shards)]
        self.folder = RunFolder(path / "memory", path / "disk")
        self.host = HostFile.create(self.folder, workers)
        self.row = self.host.row(0)
        self.replica = Replica(self.store, manifest, self.host, self.folder, self.clock)
        self.views = Views(self.host, self.row, self.folder, self.clock)
        self.intake = Intake(self.views, self.row)
        self.outbox = Outbox(self.row, 0.01, lambda _seconds, _call: None)
        self.sent: list[tuple[int, int, bytes]] = []
        self.outbox.send = self._send
        self.recommender = Recommender(self.views, self.outbox, self.row, np.random.default_rng(seed), self.clock)
        self.controls = 0
        self.control(KEY)
        self.learn()
        self.replica.load()

    def clock(self) -> int:
        return self.now_ms

    def _send(self, number: int, batch: bytes) -> bool:
        parts = list(unpack(batch))
        self.sent += parts
        self.log.append([(shard, events.frame_of(count, data)) for shard, count, data in parts])
        self.outbox.confirmed(number)
        return True

    def control(self, *records: ControlRecord) -> None:
        for record in records:
            self.controls += 1
            frame = events.control_frame(self.controls, to_json(record))
            self.log.append([(partition, frame) for partition in range(CONTROL, self.log.shards)])

    def learn(self) -> None:
        for learner in self.learners:
            while learner.poll():
                pass

    def follow(self, *records: ControlRecord) -> None:
        """Control records, then everything up to what the worker sees."""
        self.control(*records)
        self.outbox.flush()
        self.learn()
        self.replica.poll()
        self.views.refresh()

    def diag(self, name: str, graph: Graph, **parameters: object) -> None:
        """A Diag-LinUCB policy with its graph, shown."""
        spec = PolicySpec(DIAG_LINUCB, parameters=parameters)
        self.follow(PolicyPut(name, spec), GraphPut(name, self.store.put_blob(graph.to_bytes())))

    def recommend(self, policy: str, **query: object) -> Decision:
        return self.recommender.recommend(RecommendRequest(policy, **query))  # type: ignore[arg-type]

    def reward(self, decision: Decision, item: str, value: float, event_id: str | None = None) -> Verdict:
        (verdict,), by_shard = judge([FeedbackRow(decision.decision_id, item, value, event_id)], self.views, self.row)
        self.log.append([(shard, events.frame(each)) for shard, each in by_shard.items()])
        return verdict

    def outcomes(self, policy: int) -> dict[str, int]:
        """Reward and decision outcomes of a policy over all shards, those that are not 0."""
        from streaming.contract import COLUMNS

        total = sum(shard.state[f"outcomes/{policy}"][0] for shard in self.replica.shards)
        return {name: int(count) for name, count in zip(COLUMNS, total, strict=True) if count}


def random_graph(seed: int = 0, clusters: int = 12, items: int = 40, width: int = 8, dim: int = 4) -> Graph:
    rng = np.random.default_rng(seed)
    edges = np.concatenate([np.sort(rng.choice(items, width, replace=False)) for _ in range(clusters)])
    centroids = rng.normal(size=(clusters, dim)).astype(np.float32)
    return Graph(centroids, np.arange(clusters + 1) * width, edges.astype(np.uint32), _ids(items))


def _ids(n: int) -> tuple[str, ...]:
    return tuple(f'item "{i}" é' for i in range(n))
