"""Whatever happens to learners and media, the store holds what a plain replay of the log gives, bit for bit."""

import os
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from bandits import banker, banker_classic
from bandits.graph import Graph, by_item
from streaming.contract import COLUMNS, DELAY_S, OUTCOMES
from streaming.control import ControlState
from streaming.shards import shards_of_items
from streaming.state import State
from tests.naive.streaming import NaiveShard
from tests.streaming.simulation import Simulation

SEEDS = 1000 if os.environ.get("CROUPIER_LONG") else 60


def outcomes(state: State) -> Counter:
    total: Counter = Counter()
    for name in state.tables:
        if name.startswith("outcomes/"):
            total.update(dict(zip(COLUMNS, state[name][0].tolist(), strict=True)))
    return +total


def check_against_twin(simulation: Simulation, shard: int, state: State) -> None:
    restored = {n: heads[shard] for n, heads in simulation.restored.items()}
    twin = NaiveShard(shard, simulation.n_shards, simulation.store.get_blob, restored)
    twin.run(simulation.records(shard))
    counts = outcomes(state)
    assert counts == +twin.outcomes
    assert sum(counts[name] for name in OUTCOMES[:-1]) == simulation.rewards_logged[shard]

    control = ControlState.decode(state["control"].tobytes())
    for policy in control.policies.values():
        check_told(state, twin, policy.number)
        if policy.spec.is_diag:
            check_edges(simulation, shard, state, twin, policy)
        elif policy.spec.algorithm == "thompson-beta":
            check_banks(state, twin, policy)
        else:
            check_bankers(state, twin, policy)


def check_told(state: State, twin: NaiveShard, number: int) -> None:
    """What people did: shown, answered and the sum of rewards by mode, and the delays of first and late answers."""
    expected = [twin.shown.get((number, mode), [0.0, 0.0, 0.0]) for mode in range(3)]
    np.testing.assert_allclose(state[f"shown/{number}"], expected, rtol=1e-9, atol=1e-9)
    delays = twin.delays_s.get(number, [])
    bounds = [-1.0, *DELAY_S, float("inf")]
    buckets = [sum(low < each <= high for each in delays) for low, high in pairwise(bounds)]
    assert state[f"delays/{number}"][0].tolist() == [*buckets, round(1000 * sum(delays))]


def check_bankers(state: State, twin: NaiveShard, policy) -> None:
    """Everything a bank of either rule has learned."""
    number, learner = policy.number, policy.spec.arm_policy()
    for key, row in zip(state[f"bank_keys/{number}"][:, 0].tolist(), state[f"banks/{number}"], strict=True):
        slow = twin.bankers.get((number, key))
        if slow is None:
            assert row.tobytes() == learner.empty(len(policy.items)).tobytes()
            continue
        columns = learner.rows(row)
        if learner.classic:
            found = row[[banker_classic.V, banker_classic.C, banker_classic.S_ARRIVED, banker_classic.BORROWED]]
            expected = [slow.V, slow.C, slow.arrived, slow.borrowed]
            assert int(row[banker_classic.OUT]) == len(slow.waiting)
            pool = columns[:, banker_classic.POOL]
        else:
            found = row[[banker.V, banker.Q, banker.QMAX, banker.C, banker.M, banker.N, banker.T]]
            expected = [slow.V, slow.Q, slow.Qmax, slow.C, slow.m or 0.0, slow.n, slow.t]
            pool = columns[:, banker.POOL]
            np.testing.assert_allclose(columns[:, banker.A], slow.A, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(pool, slow.pool, rtol=1e-9, atol=1e-9)


def check_banks(state: State, twin: NaiveShard, policy) -> None:
    """Plays and taught rewards of each bank and arm; the bank's row holds defaults too, so those are taken off."""
    number = policy.number
    keys = state[f"bank_keys/{number}"][:, 0].tolist()
    assert keys == twin.banks.get(number, [0])
    beta, default = policy.spec.arm_policy(), policy.spec.reward.default
    for key, row in zip(keys, state[f"banks/{number}"], strict=True):
        for index, item in enumerate(policy.items):
            if item.removed:
                continue
            plays, rewards = row[beta.header + beta.columns * index :][:2]
            assert plays == twin.plays[number, key, item.id]
            taught = rewards - (default or 0.0) * plays
            assert taught == pytest.approx(twin.rewards[number, key, item.id], rel=1e-9, abs=1e-9)


def check_edges(simulation: Simulation, shard: int, state: State, twin: NaiveShard, policy) -> None:
    number = policy.number
    graph = Graph.from_bytes(simulation.store.get_blob(policy.graph.blob))
    numbers = state[f"numbers/{number}"][:, 0]
    edges = by_item(graph, shards_of_items(number, numbers, simulation.n_shards) == shard)
    item = np.repeat(np.arange(len(graph.ids)), np.diff(edges.indptr))
    expected = np.array(
        [twin.edges.get((number, int(c), graph.ids[j]), [0.0, 0.0]) for c, j in zip(edges.clusters, item, strict=True)]
    ).reshape(-1, 2)
    decay = state[f"decay/{number}"][0]
    assert decay[0] == twin.origin[number]
    scale = 2.0 ** float(-decay[1])
    np.testing.assert_allclose(state[f"edges/{number}"], expected * scale, rtol=1e-9, atol=1e-9 * max(1.0, scale))
    mine = shards_of_items(number, numbers, simulation.n_shards) == shard
    plays = np.array([twin.plays[number, item_id] for item_id in graph.ids])
    np.testing.assert_array_equal(state[f"items/{number}"][mine, 0], plays[mine])


@pytest.mark.parametrize("block", range(0, SEEDS, 10))
def test_the_store_equals_a_plain_replay_and_the_slow_twin(block: int) -> None:
    for seed in range(block, block + 10):
        simulation = Simulation(seed)
        simulation.run()
        for shard in range(simulation.n_shards):
            stored = simulation.stored(shard)
            for batch in (1, 7, 10**6):
                assert stored.equal(simulation.replayed(shard, batch)) == [], f"replay with seed={seed}, batch={batch}"
            check_against_twin(simulation, shard, stored)


def test_the_simulation_does_crash() -> None:
    simulations = [Simulation(seed) for seed in range(5)]
    for simulation in simulations:
        simulation.run()
    assert sum(simulation.crashes for simulation in simulations) > 5


def test_the_simulation_does_restore() -> None:
    simulations = [Simulation(seed) for seed in range(30)]
    for simulation in simulations:
        simulation.run()
    assert sum(len(simulation.restored) for simulation in simulations) > 10
    names = {policy for simulation in simulations for policy in simulation.restored_policies}
    assert names == {"films", "banker", "classic", "beta"}
