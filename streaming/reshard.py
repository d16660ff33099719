"""Another number of shards: every item, bank and answer goes to the shard that then owns it.

    edges/, items/           item by item, to `shards.shard_of_item`
    banks/ and their names   row by row, to `shards.shard_of_bank`; the shared bank's row is in every shard
    answered/                to every shard: an entry names a decision and a slot, not the item. It costs room until the
                             windows have passed, and a shard never sees an answer for an item of another
    outcomes/, shown/,       their sums to shard 0
      delays/
    streams, dead_letters    not kept: they number what the old log holds

A policy that forgets has a time origin and an exponent of its own in each shard; all edges are rescaled to the first
shard's origin and the greatest exponent.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bandits.graph import Graph, by_item
from streaming.changes import NAME
from streaming.contract import POISONED
from streaming.control import ControlState, Policy
from streaming.shard import DEAD_LETTERS_MAX, Shard
from streaming.shards import shard_of_bank, shards_of_items
from streaming.state import State


def redistribute(states: list[State], shards: int, blobs: Callable[[str], bytes]) -> list[State]:
    """The tables of `shards` shards with what `states` know, all of which have applied the same control records."""
    new = [State() for _ in range(shards)]
    for number, state in enumerate(states):
        Shard(number, len(states), state, blobs)  # gives a shard that has read nothing yet its tables
    control = ControlState.decode(states[0]["control"].tobytes()) if "control" in states[0] else ControlState()
    _counts(states, new)
    _answered(states, new)
    for policy in control.policies.values():
        if not policy.spec.is_diag:
            _banks(policy, states, new)
            continue
        decay = _decay(policy, states)
        for state in new:
            state.write(f"decay/{policy.number}", decay)
        if policy.graph is not None:
            _edges(policy, states, new, Graph.from_bytes(blobs(policy.graph.blob)))
    for state in new:
        if "control" in states[0]:
            state.write("control", states[0]["control"])
        state.write("streams", np.zeros((0, 3), np.int64))
    return new


def _counts(states: list[State], new: list[State]) -> None:
    for name in states[0].tables:
        if name.startswith(("outcomes/", "shown/", "delays/")):
            for shard, state in enumerate(new):
                total = np.sum([old[name] for old in states], axis=0)
                state.write(name, total if shard == 0 else np.zeros_like(total))
    for state in new:
        poisoned = int(state["outcomes/0"][0, POISONED])
        # The ring goes on at this count; the letters before it were of the old log.
        state.write("dead_letters", np.full((min(poisoned, DEAD_LETTERS_MAX), 2), -1, np.int64))


def _answered(states: list[State], new: list[State]) -> None:
    names = {name for state in states for name in state.tables if name.startswith("answered/")}
    for name in names:
        rows = np.concatenate([state[name] for state in states if name in state])
        for state in new:
            state.write(name, rows)


def _banks(policy: Policy, states: list[State], new: list[State]) -> None:
    banks, keys, names = (f"{table}/{policy.number}" for table in ("banks", "bank_keys", "bank_names"))
    empty = policy.spec.arm_policy().empty(len(policy.items)).reshape(1, -1)
    for shard, state in enumerate(new):
        parts = []
        for old_shard, old in enumerate(states):
            for row, key in enumerate(old[keys][:, 0].tolist()):
                of_old = shard_of_bank(policy.number, key, len(states)) == old_shard
                if of_old and shard_of_bank(policy.number, key, len(new)) == shard:
                    parts.append((key, old[banks][row : row + 1], old[names][row : row + 1]))
        parts.sort(key=lambda part: part[0])
        if not parts or parts[0][0] != 0:
            parts.insert(0, (0, empty, np.zeros((1, 1), NAME)))
        state.write(banks, np.concatenate([rows for _, rows, _ in parts]))
        state.write(keys, np.array([[key] for key, _, _ in parts], np.uint64))
        state.write(names, np.concatenate([named for _, _, named in parts]))


def _decay(policy: Policy, states: list[State]) -> NDArray[np.int64]:
    """(origin, exponent) of a Diag-LinUCB policy in all new shards, (1, 2)."""
    each = np.concatenate([state[f"decay/{policy.number}"] for state in states])
    return np.array([[each[0, 0], each[:, 1].max()]], np.int64)


def _edges(policy: Policy, states: list[State], new: list[State], graph: Graph) -> None:
    number = policy.number
    numbers = states[0][f"numbers/{number}"][:, 0]
    whole = by_item(graph)
    item_of = np.repeat(np.arange(len(graph.ids)), np.diff(whole.indptr))
    edges, totals = np.zeros((len(whole.clusters), 2)), np.zeros((len(graph.ids), 2))
    of_old = shards_of_items(number, numbers, len(states))
    half_life_ms = 1000.0 * (policy.spec.diag().half_life_s or 0.0)
    origin, exponent = _decay(policy, states)[0].tolist()
    for shard, state in enumerate(states):
        scale = 1.0
        if half_life_ms:
            its_origin, its_exponent = state[f"decay/{number}"][0].tolist()
            scale = 2.0 ** ((its_origin - origin) / half_life_ms + its_exponent - exponent)
        edges[of_old[item_of] == shard] = state[f"edges/{number}"] * scale
        totals[of_old == shard] = state[f"items/{number}"][of_old == shard]
    of_new = shards_of_items(number, numbers, len(new))
    for shard, state in enumerate(new):
        state.write(f"numbers/{number}", states[0][f"numbers/{number}"])
        state.write(f"edges/{number}", edges[of_new[item_of] == shard])
        state.write(f"items/{number}", np.where((of_new == shard)[:, None], totals, 0.0))
