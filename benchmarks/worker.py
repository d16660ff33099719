"""A worker in this process: its engine over a real replica in shared memory, for benchmarks of one decision's cost.

    log and store in memory -> learners -> replica -> files in /dev/shm -> HostEngine -> a channel that confirms at once

Learners and replica are let go once the files are there; what the worker reads is what it reads on a server.
"""

import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from bandits.graph import Graph
from server.host import HostEngine
from server.replica import Replica
from server.routes.recommend import recommend_bytes
from server.schemas import RecommendRequest
from server.shared import HostFile, RunFolder
from server.tables import DiagTable
from streaming import events
from streaming.control import ControlRecord, GraphPut, KeyAdd, PolicyPut, PolicySpec, to_json
from streaming.learner import Learner
from streaming.log import CONTROL, open_log
from streaming.store import Manifest, open_store


class Part(NamedTuple):
    """A policy: its graph, or its arms."""

    name: str
    spec: PolicySpec
    graph: Graph | None = None
    arms: list[str] | None = None


class Channel:
    """An agent that has every batch in the log at once."""

    def __init__(self) -> None:
        self.engine: HostEngine | None = None

    def send(self, number: int, batch: bytes) -> bool:
        """See `server.host.Channel`."""
        del batch
        assert self.engine is not None
        self.engine.outbox.confirmed(number)
        return True

    async def rewards(self, batch: bytes) -> None:
        """See `server.host.Channel`."""
        del batch

    async def call(self, method: str, *args: Any) -> bytes:
        """See `server.host.Channel`."""
        raise NotImplementedError(method, args)


def call_of(engine: HostEngine, queries: Sequence[RecommendRequest]) -> tuple[Callable[[Any], object], list[Any]]:
    """What is called for one decision, and an argument for each query: the one place that knows the worker's path."""

    def call(body: bytes) -> bytes:
        return engine.answer(body) or recommend_bytes(engine, body)

    return call, [msgspec.json.encode(_given(msgspec.to_builtins(query))) for query in queries]


def _given(tree: Any) -> Any:
    """Without members that are null, as clients send it."""
    if isinstance(tree, dict):
        return {name: _given(value) for name, value in tree.items() if value is not None}
    return tree


@contextmanager
def worker(parts: Sequence[Part], shards: int = 1, seed: int = 0) -> Iterator[HostEngine]:
    """An engine that shows these policies, every edge with a mean and a width of its own. Inside a running loop."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="croupier-bench-", dir=memory if memory.is_dir() else None) as place:
        folder = RunFolder(Path(place), Path(place))
        host = HostFile.create(folder, 1)
        _publish(parts, shards, host, folder, np.random.default_rng(seed))
        channel = Channel()
        engine = HostEngine(host, folder, 0, 10.0, channel)
        channel.engine = engine
        engine.views.refresh()
        yield engine


def _publish(parts: Sequence[Part], shards: int, host: HostFile, folder: RunFolder, rng: np.random.Generator) -> None:
    log, store = open_log("memory:", shards), open_store("memory:")
    manifest = Manifest("bench", log.id, shards, 1)
    store.create(manifest)
    records: list[ControlRecord] = [KeyAdd(0, secrets.token_hex(32), 0)]
    blobs: dict[int, str] = {}
    for part in parts:
        records.append(PolicyPut(part.name, part.spec, part.arms))
        if part.graph is not None:
            if id(part.graph) not in blobs:
                blobs[id(part.graph)] = store.put_blob(part.graph.to_bytes())
            records.append(GraphPut(part.name, blobs[id(part.graph)]))
    for n, record in enumerate(records, 1):
        frame = events.control_frame(n, to_json(record))
        log.append([(partition, frame) for partition in range(CONTROL, shards)])
    for shard in range(shards):
        learner = Learner(shard, log, store)
        while learner.poll():
            pass
    replica = Replica(store, manifest, host, folder)
    replica.load()
    for table in replica.tables.values():
        if isinstance(table, DiagTable):  # without ties, as after some time of learning
            pairs = table.arrays["pairs"]
            pairs[:, 0] = rng.normal(0.05, 0.02, len(pairs))
            pairs[:, 1] = rng.uniform(0.001, 0.1, len(pairs))
