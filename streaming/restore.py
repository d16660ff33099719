"""Back to a snapshot: what a policy's parameters become, made once into one blob a shard, and put in place by each.

    blob    a delta (`streaming.state`) of the policy's tables as they shall be:
            diag-linucb    edges, items: for the graph in use      decay: as of the snapshot
            others         bank_keys, banks: as of the snapshot

Everything that depends on more than these bytes and the shard's own tables is decided when the blob is made: a replay
finds the same. What a policy has counted (outcomes), which answers it has had and which decisions it has heard stay:
they are facts of the log, and what came of them must not come twice.

Edges and items that the snapshot does not have begin anew; so do banks; arms added since enter as they always do, at
their bank's mean. An answer to a decision made after the snapshot still teaches its difference from the default. With
rule classic its money is gone with the bank that invested it: it is unfunded; and what was invested at the snapshot
and answered since comes back when its window closes, as if it had not been answered.
"""

import numpy as np

from bandits.graph import Graph
from streaming.changes import Learned, carry_over, edges_here
from streaming.control import Policy
from streaming.prepared import Here
from streaming.state import Op, Rows, State, decode, encode


class NotRestorable(ValueError):
    """A snapshot that this policy cannot go back to; the sentence says why and what to do."""


def check(then: Policy | None, now: Policy, label: str) -> None:
    """Raises NotRestorable where the policy `now` cannot go back to what the snapshot has of it."""
    if then is None or then.number != now.number:
        raise NotRestorable(f"snapshot {label!r} was taken before policy {now.name!r} was made: take a later one")
    if now.spec.is_diag and (then.graph is None or now.graph is None):
        raise NotRestorable(f"policy {now.name!r} had no graph in snapshot {label!r}: there is nothing to go back to")
    if then.graph is not None and now.graph is not None and then.graph.lineage != now.graph.lineage:
        raise NotRestorable(
            f"policy {now.name!r} has a graph with another cluster numbering than in snapshot {label!r}: what was "
            "learned on one means nothing on the other"
        )


def make_blob(here: Here, then: Policy, now: Policy, numbers: Rows) -> bytes:
    """The blob of one shard. `here.state` is the snapshot's; `numbers` u32[N] are those of the items of `now.graph`.

    Raises NotFound where a graph is not in the store any more. Call `check` first.
    """
    number, state = now.number, here.state
    if now.graph is None or then.graph is None:
        names = ("bank_keys", "banks")
        return _packed({name: state[f"{name}/{number}"] for name in names})
    graph, old_graph = (Graph.from_bytes(here.blobs(ref.blob)) for ref in (now.graph, then.graph))
    old = Learned(state[f"numbers/{number}"][:, 0], state[f"edges/{number}"], state[f"items/{number}"])
    new = Learned.empty(numbers, edges_here(graph, number, numbers, here.number, here.shards))
    carry_over(number, here.number, here.shards, old, old_graph, new, graph, edges=True)
    return _packed({"edges": new.edges, "items": new.items, "decay": state[f"decay/{number}"]})


def _packed(tables: dict[str, Rows]) -> bytes:
    return encode(
        [
            (Op(name, rows.dtype.str, rows.shape[1], len(rows), 0, len(rows)), None, rows)
            for name, rows in tables.items()
        ]
    )


def put_in_place(state: State, policy: Policy, blob: bytes) -> None:
    """The policy's tables in a shard become what the blob says. They have the shapes that the present policy has."""
    number = policy.number
    tables = {op.name: rows for op, _, rows in decode(blob)}
    if policy.spec.is_diag:
        for name, rows in tables.items():
            assert rows.shape == state[f"{name}/{number}"].shape, f"{name}/{number}: a blob of another shape"
            state.write(f"{name}/{number}", rows)
        return
    learner, k = policy.spec.arm_policy(), len(policy.items)
    row_of = {int(key): row for row, key in enumerate(tables["bank_keys"][:, 0])}
    banks = [
        learner.grow(tables["banks"][row_of[key]], k) if key in row_of else learner.empty(k)
        for key in state[f"bank_keys/{number}"][:, 0].tolist()
    ]
    state.write(f"banks/{number}", np.stack(banks))
