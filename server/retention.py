"""What the log and the store may forget: records behind the snapshots, graphs that nothing can ask for any more.

A graph is still needed by the shards that use it, by the snapshots a shard may be restored from, and by every control
record that such a shard would read again on its way to the present.
"""

from streaming import events
from streaming.control import ControlState, GraphPut, from_json
from streaming.learner import trim
from streaming.log import CONTROL, EventLog
from streaming.state import State
from streaming.store import HOUR_MS, ParameterStore, automatic

__all__ = ["drop_graphs", "trim"]


def drop_graphs(log: EventLog, store: ParameterStore, min_age_ms: int = HOUR_MS) -> bool:
    """Drops the graphs that are not needed; False while a shard has no snapshot, since all are needed then."""
    oldest = []
    for shard in range(log.shards):
        snapshots = automatic(store, shard)
        if not snapshots:
            return False
        oldest.append(_control_of(store, snapshots[0].name))
    keep = {policy.graph.blob for control in oldest for policy in control.policies.values() if policy.graph}
    offset = min(control.applied for control in oldest)
    while records := log.read(CONTROL, offset):
        for record in records:
            control = events.control_of(record.data)
            made = None if control is None else from_json(control[1])
            if isinstance(made, GraphPut):
                keep.add(made.blob)
        offset = records[-1].offset + 1
    store.drop_blobs(keep, min_age_ms)
    return True


def _control_of(store: ParameterStore, snapshot: str) -> ControlState:
    image = store.load_snapshot(snapshot)
    state = State()
    state.load([part for name, part in image.parts.items() if name.startswith("control#")], [])
    return ControlState.decode(state["control"].tobytes()) if "control" in state else ControlState()
