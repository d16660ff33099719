"""Snapshots with a label, and putting a policy back to one, as the agent does it: it knows the store and the replica.

What the control records mean is `streaming.control`'s and `streaming.restore`'s; the learners do the copying.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from server import errors
from server.engine import ControlResult
from server.schemas import SnapshotAnswer
from streaming import restore as restoring
from streaming.control import ControlState, Policy, Restore, snapshot_label, to_json
from streaming.errors import NotFound, StoreUnavailable
from streaming.place import control_of, state_of
from streaming.prepared import Here
from streaming.store import SnapshotInfo

if TYPE_CHECKING:
    from server.agent import Agent


def snapshots(agent: "Agent") -> list[SnapshotAnswer]:
    """The snapshots that control names, by label, with what the store has of each."""
    labels = dict(agent.control_log.state.labels)
    there = _stored(agent) if labels else []
    answers = []
    for label, n in sorted(labels.items()):
        copies = [found for shard in there if (found := shard.get(snapshot_label(label, n))) is not None]
        time_ms = max((info.time_ms for info in copies), default=None)
        size = sum(info.size_bytes for info in copies)
        shards = agent.log.shards
        answers.append(SnapshotAnswer(label, n, len(copies), shards, len(copies) == shards, time_ms, size))
    return answers


def restore(agent: "Agent", name: str, label: str) -> ControlResult:
    """Puts policy `name` back to snapshot `label`; raises Problem."""
    state = agent.control_log.state
    policy, n = state.policies.get(name), state.labels.get(label)
    if policy is None:
        raise errors.unknown_policy(name)
    if n is None:
        raise errors.unknown_snapshot(label)
    try:
        blobs = _blobs(agent, policy, label, snapshot_label(label, n))
    except restoring.NotRestorable as error:
        raise errors.conflict(errors.as_sentence(str(error))) from None
    except NotFound as error:
        raise errors.conflict(f"Snapshot {label!r} is not whole any more: {error}.") from None
    except StoreUnavailable as error:
        raise errors.unavailable(f"The parameter store is away: {error}.") from error
    graph = policy.graph.number if policy.graph else 0
    return agent.control(to_json(Restore(name, label, policy.number, graph, blobs)))


def _stored(agent: "Agent") -> list[dict[str, SnapshotInfo]]:
    try:
        return [{info.label: info for info in agent.store.snapshots(shard)} for shard in range(agent.log.shards)]
    except StoreUnavailable as error:
        raise errors.unavailable(f"The parameter store is away: {error}.") from error


def _blobs(agent: "Agent", policy: Policy, label: str, stored: str) -> list[str]:
    """One blob a shard, put into the store."""
    there = _stored(agent)
    lacking = ", ".join(str(number) for number, shard in enumerate(there) if stored not in shard)
    if lacking:
        raise errors.conflict(
            f"There is no copy of snapshot {label!r} of these shards: {lacking}. If it was taken just now, try again "
            "soon; otherwise they were lost: delete the snapshot, and take another or go back to one that is whole."
        )
    numbers = _numbers(agent, policy)
    names = []
    for shard, found in enumerate(there):
        state = state_of(agent.store.load_snapshot(found[stored].name))
        control: ControlState = control_of(state)
        then = control.policies.get(policy.name)
        restoring.check(then, policy, label)
        assert then is not None
        here = Here(shard, agent.log.shards, state, agent.store.get_blob)
        names.append(agent.store.put_blob(restoring.make_blob(here, then, policy, numbers)))
    return names


def _numbers(agent: "Agent", policy: Policy) -> NDArray[np.uint32]:
    """The numbers of the items of the policy's graph, as every shard has given them."""
    if policy.graph is None:
        return np.empty(0, np.uint32)
    with agent._reading():
        shard = agent.replica.shards[0]
        shown = shard.control.policies.get(policy.name)
        if shown is None or shown.graph != policy.graph:
            raise errors.unavailable(f"The learner has not come to the newest graph of policy {policy.name!r} yet.")
        numbers: NDArray[np.uint32] = shard.state[f"numbers/{policy.number}"][:, 0].copy()
    return numbers
