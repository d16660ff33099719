"""One small turn of the whole loop in memory, so that its kernels are compiled, or loaded from their cache.

`python -m server.warm` does it for every kind of policy, and so fills the cache: for an image, or when installing.
A server's start does it for the usual two; the kernels of another kind are loaded when the first such policy is there.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bandits.graph import Graph
from server.feedback import judge
from server.outbox import Outbox, unpack
from server.recommender import Recommender
from server.replica import Replica
from server.schemas import FeedbackRow, RecommendRequest, User
from server.shared import HostFile, RunFolder
from server.views import Views
from streaming import events
from streaming.control import (
    ALGORITHMS,
    DIAG_LINUCB,
    ControlRecord,
    GraphPut,
    KeyAdd,
    PolicyPut,
    PolicySpec,
    to_json,
)
from streaming.learner import Learner
from streaming.log import open_log
from streaming.store import Manifest, open_store

USUAL = (PolicySpec(DIAG_LINUCB), PolicySpec("banker"))
EVERY = (
    *(PolicySpec(algorithm) for algorithm in ALGORITHMS),
    PolicySpec(DIAG_LINUCB, parameters={"mode": "thompson", "randomize_top": 2, "half_life_s": 1.0}),
    PolicySpec("banker", parameters={"rule": "classic"}),
    PolicySpec("banker", parameters={"rule": "classic", "regularizer": "tsallis"}),
)


def warm_up(specs: Sequence[PolicySpec] = USUAL) -> None:
    """Decides, rewards, learns and publishes once for a policy of each of these kinds."""
    log, store = open_log("memory:", shards=1), open_store("memory:")
    manifest = Manifest("warm", log.id, 1, 1)
    store.create(manifest)
    items = np.tile(np.arange(8, dtype=np.uint32), 2)  # so many that a commit changes only some of the edges
    graph = store.put_blob(
        Graph(np.eye(2, dtype=np.float32), np.array([0, 8, 16]), items, tuple("abcdefgh")).to_bytes()
    )
    records: list[ControlRecord] = [KeyAdd(0, "00" * 32, 0)]
    queries: list[RecommendRequest] = []
    for n, spec in enumerate(specs):
        name = f"{spec.algorithm}-{n}"
        if spec.is_diag:
            records += [PolicyPut(name, spec), GraphPut(name, graph)]
            queries.append(RecommendRequest(name, User(embedding=[1.0, 0.0]), k=1))
            queries.append(RecommendRequest(name, User(clusters=[0, 1]), k=2, exclude=["a"]))
        else:
            records.append(PolicyPut(name, spec, ["a", "b"]))
            queries += [RecommendRequest(name, k=2), RecommendRequest(name, k=2, mode="exploit")]
    log.append([(0, events.control_frame(n, to_json(record))) for n, record in enumerate(records, 1)])
    with tempfile.TemporaryDirectory(prefix="croupier-warm-") as place:
        folder = RunFolder(Path(place), Path(place))
        host = HostFile.create(folder, 1)
        learner, replica = Learner(0, log, store), Replica(store, manifest, host, folder)
        learner.poll()
        replica.load()
        views = Views(host, host.row(0), folder)
        sent: list[bytes] = []
        outbox = Outbox(host.row(0), 0.0, lambda _seconds, _call: None)

        def send(_number: int, batch: bytes) -> bool:
            sent.append(batch)
            return True

        outbox.send = send
        recommender = Recommender(views, outbox, host.row(0))
        decisions = [recommender.recommend(query) for query in queries]
        rows = [FeedbackRow(decision.decision_id, decision.items[0].id, 1.0) for decision in decisions]
        _, by_shard = judge(rows, views, host.row(0))
        outbox.flush()
        log.append([(0, events.frame_of(count, data)) for _, count, data in unpack(sent[0])])
        log.append([(0, events.frame(by_shard[0]))])
        learner.poll()
        replica.poll()
        for query in queries:  # from banks that are there by now
            recommender.recommend(query)


if __name__ == "__main__":
    warm_up(EVERY)
