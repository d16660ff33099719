"""One small turn of the whole loop in memory, so that every kernel is compiled, or loaded from its cache."""

import tempfile
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


def warm_up() -> None:
    """Decides, rewards, learns and publishes once for a policy of each kind."""
    log, store = open_log("memory:", shards=1), open_store("memory:")
    manifest = Manifest("warm", log.id, 1, 1)
    store.create(manifest)
    centroids, indptr = np.eye(2, dtype=np.float32), np.array([0, 2, 3])
    graph = Graph(centroids, indptr, np.array([0, 1, 1], np.uint32), ("a", "b"))
    records: list[ControlRecord] = [
        KeyAdd(0, "00" * 32, 0),
        PolicyPut("diag", PolicySpec(DIAG_LINUCB)),
        GraphPut("diag", store.put_blob(graph.to_bytes())),
        PolicyPut("bank", PolicySpec("banker"), ["a", "b"]),
    ]
    log.append([(0, events.control_frame(n, to_json(record))) for n, record in enumerate(records, 1)])
    with tempfile.TemporaryDirectory(prefix="croupier-warm-") as name:
        folder = RunFolder(Path(name), Path(name))
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
        queries = (
            RecommendRequest("diag", User(embedding=[1.0, 0.0]), k=1),
            RecommendRequest("diag", User(clusters=[0, 1]), k=2, exclude=["a"]),
            RecommendRequest("bank", k=2),
        )
        decisions = [recommender.recommend(query) for query in queries]
        rows = [FeedbackRow(decision.decision_id, decision.items[0].id, 1.0) for decision in decisions]
        _, by_shard = judge(rows, views, host.row(0))
        outbox.flush()
        log.append([(0, events.frame_of(count, data)) for _, count, data in unpack(sent[0])])
        log.append([(0, events.frame(by_shard[0]))])
        learner.poll()
        replica.poll()
        recommender.recommend(queries[2])
