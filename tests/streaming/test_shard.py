"""The state machine: forgetting, replaced graphs, banks, poison, control, against closed formulas."""

import math
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits.graph import by_item
from streaming import events, token
from streaming.contract import COLUMNS
from streaming.control import (
    GraphPut,
    ItemDelete,
    ItemPut,
    KeyAdd,
    PolicyDelete,
    PolicyPut,
    PolicySpec,
    RewardContract,
    to_json,
)
from streaming.log import Record
from streaming.shard import DEAD_LETTERS_MAX, REBASE_EVERY, Shard, UnknownRecord, decay_exponent
from streaming.state import State
from tests.streaming.machines import FILMS, START_MS, TITLES, WEIGHTS, Machine, graph


def edge(m: Machine, item: int, cluster: int) -> np.ndarray:
    edges = m.shard._policies[FILMS].edges
    low, high = edges.indptr[item], edges.indptr[item + 1]
    return m.edges[low + edges.clusters[low:high].tolist().index(cluster)]


# ------------------------------------------------------------------------------------------------------------ learning


def test_a_decision_teaches_the_default_and_an_answer_the_difference() -> None:
    m = Machine(RewardContract(60_000, 0.25, "last", -10.0, 10.0))
    payload = m.decision(items=(1,))
    w = WEIGHTS / 65535
    np.testing.assert_allclose(edge(m, 1, 0), [0.25 * w[0], w[0] ** 2], rtol=1e-15)
    m.answer(payload, 0, 2.0)
    np.testing.assert_allclose(edge(m, 1, 1), [2.0 * w[1], w[1] ** 2], rtol=1e-15)
    m.answer(payload, 0, -1.0)
    np.testing.assert_allclose(edge(m, 1, 1), [-1.0 * w[1], w[1] ** 2], rtol=1e-15)
    assert m.state[f"items/{FILMS}"].tolist() == [[0, 0], [1, -1.25], [0, 0], [0, 0]]


# ---------------------------------------------------------------------------------------------------------- forgetting


@pytest.mark.parametrize("half_life_s", [1.0, 7.5, 3600.0])
def test_forgetting_is_the_closed_formula_over_rebases(half_life_s: float) -> None:
    """b(t) / 2^((t - now) / h): what each play weighs when it is looked at, whatever rebases came between."""
    m = Machine(RewardContract(60_000, 0.5, "last", -10.0, 10.0), half_life_s=half_life_s)
    rng = np.random.default_rng(1)
    plays, rebases = [], set()
    for _ in range(120):
        m.now_ms += int(rng.integers(1, int(2000 * half_life_s)))
        payload = m.decision(items=(0,))
        value = float(rng.normal())
        plays.append((m.now_ms, value))
        m.now_ms += int(rng.integers(0, 60))
        m.answer(payload, 0, value)
        rebases.add(int(m.state[f"decay/{FILMS}"][0, 1]))
    assert len(rebases) > 3
    assert all(exponent % REBASE_EVERY == 0 for exponent in rebases)
    origin, exponent = m.state[f"decay/{FILMS}"][0].tolist()
    assert origin == START_MS
    w = WEIGHTS[0] / 65535
    g = [2.0 ** ((t - m.now_ms) / (1000 * half_life_s)) for t, _ in plays]
    now = 2.0 ** ((m.now_ms - origin) / (1000 * half_life_s) - exponent)
    expected = [math.fsum(x * w * gi for (_, x), gi in zip(plays, g, strict=True)), w * w * math.fsum(g)]
    np.testing.assert_allclose(edge(m, 0, 0) / now, expected, rtol=1e-9)
    assert now < 2.0**REBASE_EVERY
    for batch in (1, 2, 17, 1000):
        assert m.state.equal(m.replayed(batch)) == []


def test_a_pause_of_years_forgets_everything_and_harms_nothing() -> None:
    m = Machine(half_life_s=1.0)
    m.answer(m.decision(), 1, 3.0)
    m.now_ms += 10 * 365 * 86_400_000
    payload = m.decision()
    m.answer(payload, 1, 1.0)
    w = WEIGHTS[0] / 65535
    mean = edge(m, 1, 0)[0] / edge(m, 1, 0)[1]
    assert mean == pytest.approx(1.0 / w)
    assert np.isfinite(m.edges).all()
    for batch in (1, 3, 1000):
        assert m.state.equal(m.replayed(batch)) == []


def test_a_clock_far_ahead_of_the_log_cannot_make_a_weight_infinite() -> None:
    m = Machine(half_life_s=1.0)
    hour = 3_600_000
    ahead = m.decision(items=(0,), time_ms=m.now_ms + hour)
    m.answer(ahead, 0, 1.0)
    w = WEIGHTS[0] / 65535
    np.testing.assert_allclose(edge(m, 0, 0), [2.0**10 * w, 2.0**10 * w * w], rtol=1e-12)
    m.now_ms += hour
    m.answer(m.decision(items=(0,)), 0, 1.0)
    assert np.isfinite(m.edges).all()
    for batch in (1, 2, 1000):
        assert m.state.equal(m.replayed(batch)) == []


def test_the_exponent_never_goes_back() -> None:
    assert decay_exponent(START_MS, START_MS, 1000.0) == 0
    assert decay_exponent(START_MS + 20_000, START_MS, 1000.0) == 20
    assert decay_exponent(START_MS + 39_999, START_MS, 1000.0) == 20
    m = Machine(half_life_s=1.0)
    m.decision()
    m.now_ms += 50_000
    m.decision()
    m.now_ms -= 45_000  # no log does this; if one did, nothing must be scaled up
    before = m.edges.copy()
    m.give(events.frame([]))
    assert m.state[f"decay/{FILMS}"][0, 1] == 40
    np.testing.assert_array_equal(m.edges, before)


# ------------------------------------------------------------------------------------------------------ replaced graphs


def learned(m: Machine, blob: str = "g") -> dict:
    """What each (cluster, item id) edge has learned."""
    ids = {"g": graph().ids, "h": ("d", "e", "b")}[blob]
    edges = m.shard._policies[FILMS].edges
    item = np.repeat(np.arange(len(ids)), np.diff(edges.indptr))
    return {
        (int(c), ids[j]): tuple(row)
        for c, j, row in zip(edges.clusters, item, m.state[f"edges/{FILMS}"].tolist(), strict=True)
    }


@pytest.mark.parametrize("keeps", [True, False])
def test_a_new_graph_carries_over_the_edges_it_shares(keeps: bool) -> None:
    m = Machine()
    m.blobs["h"] = graph(("d", "e", "b"), ((0, 2), (1, 2), (0, 1))).to_bytes()
    payloads = [m.decision(items=(j, (j + 1) % 4)) for j in range(4)]
    for i, payload in enumerate(payloads):
        m.answer(payload, 0, float(i + 1))
    before, plays = learned(m), dict(zip("abcd", m.state[f"items/{FILMS}"].tolist(), strict=True))
    m.control(GraphPut("films", "h", keeps))
    after = learned(m, "h")
    shared = {(2, "d"), (0, "b"), (1, "b")}  # (1, d) is gone, (0, d) is new
    assert after.keys() == {(0, "d"), (0, "b"), (1, "e"), (1, "b"), (2, "d"), (2, "e")}
    for name, row in after.items():
        expected = before[name] if keeps and name in shared else (0.0, 0.0)
        assert row == expected, name
    assert m.state[f"numbers/{FILMS}"][:, 0].tolist() == [3, 4, 1]
    assert m.state[f"items/{FILMS}"].tolist() == [plays["d"], [0.0, 0.0], plays["b"]]
    # Old decisions go on where the clusters are the same, and items that left are gone.
    assert m.answer(payloads[1], 0, 9.0) == ("duplicate" if keeps else "gone")
    assert m.answer(payloads[0], 1, 5.0) == ("applied" if keeps else "gone")
    assert m.answer(payloads[2], 0, 9.0) == "gone"
    # What comes back has a new number: its old tokens stay gone.
    m.control(GraphPut("films", "g", keeps))
    assert m.state[f"numbers/{FILMS}"][:, 0].tolist() == [5, 1, 6, 3]
    assert m.answer(payloads[0], 0, 1.0) == "gone"
    m.reload()
    assert m.answer(payloads[0], 0, 1.0) == "gone"
    for batch in (1, 5, 1000):
        assert m.state.equal(m.replayed(batch)) == []


def test_edges_of_a_shard_are_those_of_its_items() -> None:
    edges = by_item(graph(), np.array([True, False, True, False]))
    assert np.diff(edges.indptr).tolist() == [2, 0, 1, 0]


# ------------------------------------------------------------------------------------------------- banks and segments


def test_banks_are_made_on_first_use_up_to_the_limit_and_named() -> None:
    m = Machine()
    m.control(PolicyPut("few", PolicySpec("thompson-beta", m.reward, max_segments=2), ["x", "y"]))
    keys = [token.segment_key(name) for name in ("one", "two", "three")]
    for key, name in zip(keys, ("one", "two", "three"), strict=True):
        m.give(events.frame([events.segment(m.n, key, name)]))
    assert m.state[f"bank_keys/{m.n}"][:, 0].tolist() == [0, *keys[:2]]
    assert m.state[f"bank_names/{m.n}"][:, 0].tolist() == [b"", b"one", b"two"]
    payloads = [m.decision(m.n, (0, 1), bank=key) for key in (*keys, 0)]
    assert [m.answer(payload, 1, 1.0) for payload in payloads] == ["applied", "applied", "unfunded", "applied"]
    beta = PolicySpec("thompson-beta").arm_policy()
    plays = m.state[f"banks/{m.n}"][:, beta.header]
    assert plays.tolist() == [1.0, 1.0, 1.0]
    m.give(events.frame([events.segment(m.n, keys[0], "renamed"), events.segment(FILMS, 5, "no banks here")]))
    assert m.state[f"bank_names/{m.n}"][1, 0] == b"one"
    for batch in (1, 4, 1000):
        assert m.state.equal(m.replayed(batch)) == []


def test_a_new_arm_widens_every_bank() -> None:
    m = Machine()
    m.decision(TITLES, (1,), bank=7)
    width = m.state[f"banks/{TITLES}"].shape
    m.control(ItemPut("titles", "z"))
    assert m.state[f"banks/{TITLES}"].shape[0] == width[0] == 2
    assert m.state[f"banks/{TITLES}"].shape[1] > width[1]
    payload = m.decision(TITLES, (2,), bank=7)
    assert m.answer(payload, 0, 1.0) == "applied"
    assert m.state.equal(m.replayed(1000)) == []


# ------------------------------------------------------------------------------------------------------------- records


def test_poison_is_counted_and_its_place_is_kept_in_a_ring() -> None:
    m = Machine()
    broken = bytearray(events.decision(m.decision(sent=False), 0))
    broken[40] ^= 1
    m.give(b"nothing of ours")
    m.give(events.frame([events.segment(TITLES, 5, "sound"), bytes(broken)]))
    assert m.state["dead_letters"].tolist() == [[3, 0], [4, 1]]
    assert m.outcomes()["poison"] == 2
    m.give(events.frame([bytes(broken)] * (DEAD_LETTERS_MAX + 3)))
    ring = m.state["dead_letters"]
    assert len(ring) == DEAD_LETTERS_MAX
    assert ring[:6].tolist() == [[5, 998], [5, 999], [5, 1000], [5, 1001], [5, 1002], [5, 3]]
    m.answer(m.decision(), 0, 1.0)
    for batch in (1, 2, 1000):
        assert m.state.equal(m.replayed(batch)) == []


def test_control_records_take_effect_once_and_in_order() -> None:
    m = Machine()
    record = to_json(ItemPut("titles", "z"))
    m.give(events.control_frame(m.n + 2, record))
    assert m.shard.control.applied == m.n
    for _ in range(2):
        m.give(events.control_frame(m.n + 1, record))
    assert [item.id for item in m.shard.control.policies["titles"].items] == ["x", "y", "z"]
    m.n += 1
    m.control(ItemPut("nowhere", "z"))  # without effect, but counted
    assert m.shard.control.applied == m.n
    m.control(PolicyPut("titles", PolicySpec("thompson-beta", m.reward), []))  # fails when it has removed all arms
    m.control(ItemPut("titles", "late"))
    titles = m.shard.control.policies["titles"]
    assert [item.id for item in titles.items if not item.removed] == ["x", "y", "z", "late"]
    assert titles.version == m.n == m.shard.control.applied
    assert m.state.equal(m.replayed(1000)) == []


REWARD = RewardContract(60_000, 0.0, "first", -10.0, 10.0)
RECORDS = [
    PolicyPut("films", PolicySpec("diag-linucb", REWARD)),
    PolicyPut("forgetful", PolicySpec("diag-linucb", REWARD, {"half_life_s": 1.0})),
    PolicyPut("titles", PolicySpec("thompson-beta", REWARD), ["y", "z"]),
    PolicyPut("titles", PolicySpec("banker", REWARD), ["x", "y"]),
    PolicyPut("classic", PolicySpec("banker", REWARD, {"rule": "classic", "max_outstanding": 2}), ["x"]),
    *(PolicyDelete(name) for name in ("films", "forgetful", "titles", "classic")),
    *(GraphPut("films", blob, keeps) for blob in "gh" for keeps in (True, False)),
    *(GraphPut(name, "g") for name in ("forgetful", "titles")),
    *(ItemPut(name, item, item == "a") for name in ("films", "titles", "classic") for item in "aw"),
    ItemDelete("titles", "x"),
    KeyAdd(1, "00", 0),
]


@given(st.lists(st.sampled_from(RECORDS), max_size=12), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_any_control_records_in_any_order_between_plays_and_answers(records: list, reload_at: int) -> None:
    m = Machine(REWARD)
    m.blobs["h"] = graph(("d", "e", "b"), ((0, 2), (1, 2), (0, 1))).to_bytes()
    outcomes = []
    for i, record in enumerate(records):
        m.now_ms += 15_000
        m.control(record)
        assert m.shard.control.applied == m.n
        if i == reload_at:
            m.reload()
        for policy in m.shard.control.policies.values():
            changes = {"kind": token.ARMS, "p": 0.5, "w": 0.5}
            if policy.spec.is_diag:
                lineage = policy.graph.lineage if policy.graph else 0
                context = {"clusters": np.arange(3, dtype=np.uint32), "weights": WEIGHTS}
                changes = {"kind": token.DIAG, "lineage": lineage, **context}
            payload = m.decision(policy.number, (policy.next_item - 1 if policy.next_item else 0,), **changes)
            outcomes.append(m.answer(payload, 0, 1.0))
    assert sum(m.outcomes()[name] for name in ("applied", "gone", "unfunded")) == len(outcomes)
    for batch in (1, 4, 1000):
        assert m.state.equal(m.replayed(batch)) == []


def test_a_policy_that_goes_leaves_its_counts_and_nothing_else() -> None:
    m = Machine()
    m.answer(m.decision(), 0, 1.0)
    before = m.outcomes()
    m.control(PolicyDelete("films"))
    assert m.outcomes() == before
    assert not [name for name in m.state.tables if name.endswith(f"/{FILMS}") and not name.startswith("answered/")]
    m.decision()
    assert m.state["outcomes/0"][0, COLUMNS.index("decisions_gone")] == 1


def test_a_policy_that_goes_before_it_had_a_graph() -> None:
    m = Machine()
    m.control(PolicyPut("bare", PolicySpec("diag-linucb", m.reward)))
    bare = m.n
    m.reload()
    m.control(PolicyDelete("bare"))
    assert not [name for name in m.state.tables if name.endswith(f"/{bare}")]
    assert m.answer(m.decision(), 0, 1.0) == "applied"
    for batch in (1, 1000):
        assert m.state.equal(m.replayed(batch)) == []


def test_an_unknown_event_stops_the_shard_with_its_place() -> None:
    m = Machine()
    event = bytearray(events.decision(m.decision(sent=False), 0))
    event[6] = 9
    event[:4] = crc32(bytes(event[4:])).to_bytes(4, "little")
    with pytest.raises(UnknownRecord, match=r"shard 0, offset 3, event 1: .* another release"):
        m.give(events.frame([events.segment(TITLES, 1, "a"), bytes(event)]))


def test_a_log_clock_that_steps_back_does_not_take_time_back():
    """Whatever the batches: the answered-set expires by the latest time so far, not by the last record's."""
    states = []
    for batch in (1, 2, 5):
        machine = Shard(0, 1, State(), {}.__getitem__)
        records = [Record(i, t, events.frame([])) for i, t in enumerate([1_000, 90_000_000, 2_000, 3_000, 90_000_001])]
        for at in range(0, len(records), batch):
            machine.step(records[at : at + batch])
        assert machine.log_time_ms == 90_000_001
        states.append(machine.state)
    assert states[0].equal(states[1]) == states[0].equal(states[2]) == []
