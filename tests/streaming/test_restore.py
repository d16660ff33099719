"""Back to a snapshot: what a restored policy knows, what it keeps, and what the answers of outstanding decisions do."""

import numpy as np
import pytest

from bandits import banker_classic
from streaming import restore
from streaming.control import (
    LABELS_MAX,
    ControlError,
    ControlState,
    GraphPut,
    ItemPut,
    Policy,
    PolicyDelete,
    PolicyPut,
    PolicySpec,
    Restore,
    RewardContract,
    SnapshotDrop,
    SnapshotTake,
)
from streaming.prepared import Here
from streaming.state import State
from tests.streaming.machines import FILMS, GRAPH, START_MS, TITLES, Machine, graph

FIRST = RewardContract(60_000, 0.0, "first", -10.0, 10.0)
V, SIGMA_OUT, BORROWED, OUT = (
    banker_classic.V, banker_classic.SIGMA_OUT, banker_classic.BORROWED, banker_classic.OUT
)  # fmt: skip


def copy_of(m: Machine) -> State:
    state = State()
    state.load([m.state.part(name, 0) for name in m.state.tables], [])
    return state


def policy_of(state: State, name: str) -> Policy:
    return ControlState.decode(state["control"].tobytes()).policies[name]


def go_back(m: Machine, then: State, name: str, numbers: np.ndarray | None = None) -> Restore:
    """What an agent does; the record."""
    now = m.shard.control.policies[name]
    before = policy_of(then, name)
    restore.check(before, now, "x")
    if numbers is None:
        numbers = m.state[f"numbers/{now.number}"][:, 0] if now.graph else np.empty(0, np.uint32)
    blob = restore.make_blob(Here(0, 1, then, m.blobs.__getitem__), before, now, numbers)
    m.blobs[f"blob{m.n}"] = blob
    record = Restore(name, "x", now.number, now.graph.number if now.graph else 0, [f"blob{m.n}"])
    m.control(record)
    return record


def test_what_was_learned_is_back_and_what_was_counted_stays() -> None:
    m = Machine(FIRST)
    open_then = m.decision(items=(0, 1))
    answered = m.decision(items=(2,))
    m.answer(answered, 0, 3.0)
    m.decision(TITLES, items=(1,))
    then = copy_of(m)
    m.answer(m.decision(items=(1, 3)), 0, -2.0)
    m.answer(m.decision(TITLES, items=(0,)), 0, 5.0)
    titles = m.state[f"banks/{TITLES}"].copy()
    outcomes = m.outcomes()
    version = m.shard.control.policies["films"].version
    go_back(m, then, "films")
    for name in ("edges", "items", "decay", "numbers"):
        assert m.state[f"{name}/{FILMS}"].tobytes() == then[f"{name}/{FILMS}"].tobytes()
    assert m.state[f"banks/{TITLES}"].tobytes() == titles.tobytes()
    assert m.outcomes() == outcomes
    assert m.shard.control.policies["films"].version == m.n > version
    assert m.answer(answered, 0, 1.0) == "duplicate"
    assert m.answer(open_then, 1, 1.0) == "applied"
    assert m.state[f"items/{FILMS}"][1].tolist() == [1.0, 1.0]
    for batch in (1, 3, 100):
        assert m.state.equal(m.replayed(batch)) == []


def test_items_and_edges_that_came_later_begin_anew() -> None:
    m = Machine(FIRST)
    m.answer(m.decision(items=(0, 1, 2)), 2, 3.0)
    then = copy_of(m)
    m.blobs["h"] = graph(("d", "a", "e", "b"), ((0, 1), (1, 2, 3), (0, 1, 3))).to_bytes()  # c is gone, e is new
    m.control(GraphPut("films", "h", keeps_clusters=True))
    m.decision(items=(0, 4))
    assert m.state[f"numbers/{FILMS}"][:, 0].tolist() == [3, 0, 4, 1]
    assert m.edges.any(axis=1).sum() > 3
    go_back(m, then, "films")
    edges = m.shard._policies[FILMS].edges
    shown = {
        (int(m.state[f"numbers/{FILMS}"][item, 0]), int(cluster)): tuple(row)
        for item in range(4)
        for cluster, row in zip(
            edges.clusters[edges.indptr[item] : edges.indptr[item + 1]].tolist(),
            m.edges[edges.indptr[item] : edges.indptr[item + 1]].tolist(),
            strict=True,
        )
    }
    old = Machine(FIRST)
    old.answer(old.decision(items=(0, 1, 2)), 2, 3.0)
    was = old.shard._policies[FILMS].edges
    for (number, cluster), row in shown.items():
        at = was.indptr[number] + np.flatnonzero(was.clusters[was.indptr[number] : was.indptr[number + 1]] == cluster) \
            if number < 4 else []  # fmt: skip
        assert list(row) == (old.edges[at[0]].tolist() if len(at) else [0.0, 0.0])
    assert m.state[f"items/{FILMS}"][:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_a_forgetting_policy_ages_as_if_it_had_only_waited() -> None:
    """The snapshot's accumulators count from their own exponent; the next batch brings them to the log's time."""
    m, quiet = Machine(FIRST, half_life_s=1.0), Machine(FIRST, half_life_s=1.0)
    for each in (m, quiet):
        each.decision(items=(0, 1))
    then = copy_of(m)
    for _ in range(3):
        m.now_ms += 30_000
        m.decision(items=(2,))
    exponent = int(m.state[f"decay/{FILMS}"][0, 1])
    assert exponent > int(then[f"decay/{FILMS}"][0, 1])
    go_back(m, then, "films")
    quiet.now_ms = m.now_ms
    for each in (m, quiet):
        each.decision(items=(3,))
    assert m.state[f"decay/{FILMS}"].tolist() == quiet.state[f"decay/{FILMS}"].tolist() == [[START_MS, exponent]]
    np.testing.assert_array_equal(m.edges, quiet.edges)


def test_classic_money_stays_in_the_bank_whatever_the_outstanding_answers_do() -> None:
    m = Machine(FIRST)
    m.control(PolicyPut("classic", PolicySpec("banker", FIRST, {"rule": "classic", "max_outstanding": 8}), ["x", "y"]))
    number = m.n

    def play(arm: int) -> bytes:
        return m.decision(number, items=(arm,), p=0.5, w=0.5, a=0.0, c=0.0)

    def bank() -> np.ndarray:
        row = m.state[f"banks/{number}"][0]
        assert row[V] + row[SIGMA_OUT] == pytest.approx(row[BORROWED], rel=1e-12)
        return row

    m.answer(play(0), 0, 1.0)
    unanswered, answered_since = play(0), play(1)
    then = copy_of(m)
    assert bank()[OUT] == 2
    m.answer(answered_since, 0, 1.0)
    later = play(0)
    assert bank()[OUT] == 2
    go_back(m, then, "classic")
    assert bank().tobytes() == then[f"banks/{number}"][0].tobytes()
    assert m.answer(later, 0, 1.0) == "unfunded"  # the bank that invested in it is gone
    assert bank()[OUT] == 2
    assert m.answer(answered_since, 0, 1.0) == "duplicate"  # its money comes back with the window
    assert bank()[OUT] == 2
    assert m.answer(unanswered, 0, 1.0) == "applied"
    assert bank()[OUT] == 1
    m.now_ms += 61_000
    m.answer(play(1), 0, 0.5)
    assert bank()[OUT] == 0
    assert m.state.equal(m.replayed(4)) == []


def test_banks_and_arms_that_came_later_begin_anew() -> None:
    m = Machine(FIRST, algorithm="banker")
    shown = {"p": 0.5, "w": 0.5, "a": 0.0, "c": 0.0}
    m.answer(m.decision(TITLES, items=(0,), bank=7, **shown), 0, 1.0)
    then = copy_of(m)
    m.control(ItemPut("titles", "z"))
    m.answer(m.decision(TITLES, items=(2,), bank=7, **shown), 0, 4.0)
    m.answer(m.decision(TITLES, items=(1,), bank=9, **shown), 0, 4.0)
    go_back(m, then, "titles")
    learner = m.shard.control.policies["titles"].spec.arm_policy()
    keys = m.state[f"bank_keys/{TITLES}"][:, 0].tolist()
    assert keys == [0, 7, 9]
    banks = m.state[f"banks/{TITLES}"]
    assert banks[1].tobytes() == learner.grow(then[f"banks/{TITLES}"][1], 3).tobytes()
    assert banks[2].tobytes() == learner.empty(3).tobytes()
    m.answer(m.decision(TITLES, items=(2,), bank=9, **shown), 0, 1.0)
    assert m.state.equal(m.replayed(5)) == []


def test_a_policy_that_was_changed_meanwhile_is_left_as_it_is() -> None:
    m = Machine(FIRST)
    m.decision(items=(0, 1))
    then = copy_of(m)
    record = go_back(m, then, "films")
    m.blobs["h"] = graph().to_bytes()
    m.control(GraphPut("films", "h", keeps_clusters=True))
    m.decision(items=(2,))
    edges = m.edges.copy()
    m.control(record)  # its blobs are for the graph before
    assert m.shard.control.applied == m.n
    assert m.edges.tobytes() == edges.tobytes()
    m.control(PolicyDelete("titles"))
    m.control(PolicyPut("titles", PolicySpec("thompson-beta", FIRST), ["x"]))
    m.control(Restore("titles", "x", TITLES, 0, ["nowhere"]))
    assert m.shard.control.applied == m.n


@pytest.mark.parametrize("change", ["graph", "policy", "none"])
def test_what_cannot_be_restored_is_said(change: str) -> None:
    m = Machine(FIRST)
    then = copy_of(m)
    if change == "graph":
        m.blobs["h"] = graph().to_bytes()
        m.control(GraphPut("films", "h"))
        sentence = "another cluster numbering"
    elif change == "policy":
        m.control(PolicyDelete("films"))
        m.control(PolicyPut("films", PolicySpec("thompson-beta", FIRST), ["x"]))
        sentence = "before policy 'films' was made"
    else:
        then = copy_of(Machine(FIRST))
        control = m.shard.control
        then.write("control", np.frombuffer(ControlState(control.applied, {}, {}).encode(), np.uint8))
        sentence = "before policy 'films' was made"
    before = ControlState.decode(then["control"].tobytes()).policies.get("films")
    with pytest.raises(restore.NotRestorable, match=sentence):
        restore.check(before, m.shard.control.policies["films"], "x")
    assert GRAPH == 2


def test_labels_are_named_once_and_bounded() -> None:
    state = ControlState()
    for n in range(LABELS_MAX):
        state.apply(n + 1, SnapshotTake(f"label-{n}"))
    for record, field in (
        (SnapshotTake("one-more"), "label"),
        (SnapshotTake("label-3"), "label"),
        (SnapshotTake("Upper"), "label"),
        (SnapshotTake("a" * 65), "label"),
        (SnapshotDrop("nowhere"), "label"),
    ):
        with pytest.raises(ControlError) as error:
            state.check(record)
        assert error.value.field == field
    state.apply(LABELS_MAX + 1, SnapshotDrop("label-3"))
    state.apply(LABELS_MAX + 2, SnapshotTake("label-3"))
    assert state.labels["label-3"] == LABELS_MAX + 2
    assert ControlState.decode(state.encode()) == state
