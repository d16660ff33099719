"""Small turns of the whole loop in memory, so that its kernels are compiled, or loaded from their cache.

    warm_worker   publish tables, decide, judge rewards: all that has to be there for a first answer
    warm_up       all of that, and learning

`python -m server.warm` does it for every kind of policy, and so fills the cache: for an image, or when installing.
A server's start does it for the usual two; the kernels of another kind are loaded when the first such policy is there.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from bandits.graph import Graph
from server import catalog as catalogs
from server import tables
from server.catalog import Catalog
from server.intake import FEW, Intake
from server.lean import without_scipy
from server.outbox import Outbox
from server.recommender import Recommender
from server.schemas import FeedbackRow, RecommendRequest, User
from server.shared import GENERATION, HostFile, RunFolder
from server.views import Views
from streaming import changes
from streaming.control import (
    ALGORITHMS,
    DIAG_LINUCB,
    ControlRecord,
    ControlState,
    GraphPut,
    Key,
    KeyAdd,
    PolicyPut,
    PolicySpec,
    to_json,
)
from streaming.prepared import Here
from streaming.state import State
from streaming.token import segment_key

USUAL = (PolicySpec(DIAG_LINUCB), PolicySpec("banker"))
EVERY = (
    *(PolicySpec(algorithm) for algorithm in ALGORITHMS),
    PolicySpec(DIAG_LINUCB, parameters={"mode": "thompson", "randomize_top": 2, "half_life_s": 1.0}),
    PolicySpec("banker", parameters={"rule": "classic"}),
    PolicySpec("banker", parameters={"rule": "classic", "regularizer": "tsallis"}),
)
# So many items that a commit changes only some of the edges.
GRAPH = Graph(
    np.eye(2, dtype=np.float32), np.array([0, 8, 16]), np.tile(np.arange(8, dtype=np.uint32), 2), tuple("abcdefgh")
)


@contextmanager
def _run_folder() -> Iterator[tuple[RunFolder, HostFile]]:
    with tempfile.TemporaryDirectory(prefix="croupier-warm-") as place:
        folder = RunFolder(Path(place), Path(place))
        yield folder, HostFile.create(folder, 1)


class _Asked(NamedTuple):
    """Requests as the routes ask them, and as the hot path does."""

    queries: list[RecommendRequest]
    bodies: list[bytes]


def _asked(specs: Sequence[PolicySpec], graph: str) -> tuple[list[ControlRecord], _Asked]:
    """Records that make a policy of each of these kinds, and requests to them."""
    records: list[ControlRecord] = [KeyAdd(0, "00" * 32, 0)]
    queries: list[RecommendRequest] = []
    bodies: list[bytes] = []
    for n, spec in enumerate(specs):
        name = f"{spec.algorithm}-{n}"
        if spec.is_diag:
            records += [PolicyPut(name, spec), GraphPut(name, graph)]
            queries.append(RecommendRequest(name, User(embedding=[1.0, 0.0]), k=1))
            queries.append(RecommendRequest(name, User(clusters=[0, 1]), k=2, exclude=["a"]))
            bodies.append(b'{"policy":"%b","user":{"clusters":[0,1]},"k":2,"exclude":["a"]}' % name.encode())
        else:
            records.append(PolicyPut(name, spec, ["a", "b"]))
            queries += [RecommendRequest(name, k=2), RecommendRequest(name, k=2, mode="exploit")]
    return records, _Asked(queries, bodies)


class _Worker:
    """Decides and judges over what a run folder shows; `sent` are its batches of decisions."""

    def __init__(self, folder: RunFolder, host: HostFile) -> None:
        self.sent: list[bytes] = []
        self._row = host.row(0)
        self._views = Views(host, self._row, folder)
        self._outbox = Outbox(self._row, 0.0, lambda _seconds, _call: None)
        self._outbox.send = self._send
        self._recommender = Recommender(self._views, self._outbox, self._row)
        self._intake = Intake(self._views, self._row)

    def _send(self, number: int, batch: bytes) -> bool:
        del number
        self.sent.append(batch)
        return True

    def turn(self, asked: _Asked) -> bytes:
        """Decisions, and rewards for each: the batch of the rewards."""
        decisions = [self._recommender.recommend(query) for query in asked.queries]
        for body in asked.bodies:
            self._recommender.answer(body)
        rows = [FeedbackRow(decision.decision_id, decision.items[0].id, 1.0) for decision in decisions]
        self._outbox.flush()
        return self._intake.take(rows * (FEW + 1)).batch


def warm_worker(specs: Sequence[PolicySpec] = USUAL) -> None:
    """Decides and judges twice for a policy of each of these kinds, from tables in which nothing is learned."""
    records, asked = _asked(specs, "graph")
    control, state = ControlState(), State()
    here = Here(0, 1, state, lambda _name: GRAPH.to_bytes())
    for n, record in enumerate(records, 1):
        before = {policy.number: policy for policy in control.policies.values()}
        control = ControlState.decode(control.encode())
        changed = control.apply(n, record)
        if changed is not None:
            changes.change(here, changed, before.get(changed.number), 0)
    with without_scipy(), _run_folder() as (folder, host):
        made = [
            tables.make(folder, policy, GRAPH if policy.graph else None, [state], 0)
            for policy in control.policies.values()
        ]
        catalog = Catalog(len(records), 1, {0: Key(0, bytes(32), 0)}, [table.entry for table in made])
        folder.write(catalogs.name_of(1), msgspec.msgpack.encode(catalog))
        host[GENERATION] = 1
        worker = _Worker(folder, host)
        worker.turn(asked)
        for table in made:
            _change(table, state)
        worker.turn(asked)


def _change(table: tables.Table, state: State) -> None:
    """What the first commit changes: an edge; a segment gets a bank of its own."""
    if not isinstance(table, tables.ArmsTable):
        table.write(0, state, {"edges": np.zeros(1, np.int64)}, 0)
        return
    number = table.entry.number
    row = state.append(f"banks/{number}", state[f"banks/{number}"][:1].copy())
    state.append(f"bank_keys/{number}", np.array([[segment_key("all")]], np.uint64))
    table.write(0, state, {"banks": np.array([row])}, 0)


def warm_up(specs: Sequence[PolicySpec] = USUAL) -> None:
    """Decides, rewards, learns and publishes once for a policy of each of these kinds."""
    from server.outbox import unpack
    from server.replica import Replica
    from streaming import events
    from streaming.learner import Learner
    from streaming.log import open_log
    from streaming.store import Manifest, open_store

    log, store = open_log("memory:", shards=1), open_store("memory:")
    manifest = Manifest("warm", log.id, 1, 1)
    store.create(manifest)
    records, asked = _asked(specs, store.put_blob(GRAPH.to_bytes()))
    log.append([(0, events.control_frame(n, to_json(record))) for n, record in enumerate(records, 1)])
    with without_scipy(), _run_folder() as (folder, host):
        learner, replica = Learner(0, log, store), Replica(store, manifest, host, folder)
        learner.poll()
        replica.load()
        worker = _Worker(folder, host)
        for _ in range(2):  # the second time from banks that are there by then
            rewards = worker.turn(asked)
            log.append([(0, events.frame_of(count, data)) for _, count, data in unpack(worker.sent.pop())])
            log.append([(0, events.frame_of(count, data)) for _, count, data in unpack(rewards)])
            learner.poll()
            replica.poll()


if __name__ == "__main__":
    warm_up(EVERY)
