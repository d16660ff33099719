"""What the log and the store may forget: records behind the snapshots, blobs that nothing can ask for any more.

A graph is still needed by the shards that use it, by the snapshots a shard may be restored from, those with a label
among them, and by every control record that such a shard would read again on its way to the present. So are the blobs
that a restore puts in place.
"""

import msgspec

from streaming import events
from streaming.control import ControlState, GraphPut, Restore, from_json
from streaming.errors import NotFound
from streaming.learner import trim
from streaming.log import CONTROL, Clock, EventLog, wall_clock
from streaming.state import State
from streaming.store import HOUR_MS, ParameterStore

__all__ = ["drop_graphs", "trim"]


def drop_graphs(
    log: EventLog,
    store: ParameterStore,
    clock: Clock = wall_clock,
    min_age_ms: int = HOUR_MS,
    known: dict[str, ControlState] | None = None,
) -> bool:
    """Drops the blobs that are not needed. False where nobody can tell now, and nothing was dropped.

    That is while a shard has no snapshot, since all are needed then, when a learner drops one that is looked at, and
    when a control record is of another release.

    Blobs put in the last `min_age_ms`, by the clock that dates them in the store, stay: the control record that names
    one may be on its way. They are counted from before anything is read, however long that takes.

    `known` holds what snapshots say of control, by their names, from one call to the next: they are large to read.
    """
    put_before_ms = clock() - min_age_ms
    known = {} if known is None else known
    oldest, keep = [], set()
    names: set[str] = set()
    for shard in range(log.shards):
        snapshots = store.snapshots(shard)
        first = next((info.name for info in snapshots if not info.label), None)
        if first is None:
            return False
        for info in snapshots:
            if info.label or info.name == first:
                names.add(info.name)
                try:
                    known[info.name] = known.get(info.name) or _control_of(store, info.name)
                except NotFound:
                    return False
                keep |= {policy.graph.blob for policy in known[info.name].policies.values() if policy.graph}
        oldest.append(known[first])
    for name in known.keys() - names:
        del known[name]
    offset = min(control.applied for control in oldest)
    while records := log.read(CONTROL, offset):
        for record in records:
            control = events.control_of(record.data)
            try:
                made = None if control is None else from_json(control[1])
            except msgspec.ValidationError:
                return False
            if isinstance(made, GraphPut):
                keep.add(made.blob)
            elif isinstance(made, Restore):
                keep.update(made.blobs)
        offset = records[-1].offset + 1
    store.drop_blobs(keep, put_before_ms)
    return True


def _control_of(store: ParameterStore, snapshot: str) -> ControlState:
    image = store.load_snapshot(snapshot)
    state = State()
    state.load([part for name, part in image.parts.items() if name.startswith("control#")], [])
    return ControlState.decode(state["control"].tobytes()) if "control" in state else ControlState()
