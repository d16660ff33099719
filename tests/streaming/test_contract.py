"""The reward contract: each outcome by hand, random rewards against the slow twin, and that order does not matter."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streaming import events, token
from streaming.contract import COLUMNS, MINUTE_MS, STREAM_IDLE_MS
from streaming.control import GraphPut, ItemDelete, PolicyDelete, RewardContract
from tests.streaming.machines import FILMS, TITLES, Machine

AGGREGATIONS = ("first", "last", "max", "sum")
values = st.sampled_from([-2.0, 0.0, 0.25, 1.0, 1.0, 3.0, 11.0])


def machine(aggregation: str = "first", default: float | None = 0.0, **more) -> Machine:
    return Machine(RewardContract(60_000, default, aggregation, -10.0, 10.0), **more)


# ------------------------------------------------------------------------------------------------------ each outcome


def test_a_reward_counts_until_the_window_has_passed_and_not_a_millisecond_longer() -> None:
    m = machine()
    one, two = m.decision(), m.decision()
    m.now_ms += 60_000
    assert m.answer(one, 0, 1.0) == "applied"
    m.now_ms += 1
    assert m.answer(two, 0, 1.0) == "late"
    assert m.answer(one, 0, 1.0) == "late"


def test_the_window_is_the_tokens_own() -> None:
    m = machine()
    payload = m.decision(window_ms=5)
    m.now_ms += 6
    assert m.answer(payload, 0, 1.0) == "late"


def test_what_is_gone() -> None:
    m = machine()
    film, title = m.decision(), m.decision(TITLES, (0,))
    other = m.decision(sent=False, policy=FILMS, lineage=99)
    assert m.answer(other, 0, 1.0) == "gone"
    assert m.answer(m.decision(sent=False, items=(77,)), 0, 1.0) == "gone"
    stranger = token.encode(token.decode(film)._replace(policy=55))
    assert m.answer(stranger, 0, 1.0) == "gone"
    crossed = token.encode(token.decode(title)._replace(policy=FILMS, lineage=2))
    assert m.answer(crossed, 0, 1.0) == "gone"
    m.control(ItemDelete("titles", "x"))
    assert m.answer(title, 0, 1.0) == "gone"
    m.control(GraphPut("films", "g"))
    assert m.answer(film, 0, 1.0) == "gone"
    m.control(PolicyDelete("films"))
    assert m.answer(film, 1, 1.0) == "gone"
    assert m.outcomes()["gone"] == 7
    assert m.state["outcomes/0"][0, COLUMNS.index("gone")] == 6  # with those of films, which is no more


def test_out_of_range_by_the_policys_bounds_which_belong_to_it() -> None:
    m = machine()
    payload = m.decision()
    for value in (10.0000001, -11.0, np.nan, np.inf):
        assert m.answer(payload, 0, value) == "out_of_range"
    assert [m.answer(payload, slot, value) for slot, value in enumerate((10.0, -10.0))] == ["applied", "applied"]


def test_unfunded_where_only_the_draw_teaches() -> None:
    m = machine(algorithm="exp3")
    payload = m.decision(TITLES, (0, 1), p=0.5, w=1.0)
    assert m.answer(payload, 1, 1.0) == "unfunded"
    assert m.answer(payload, 0, 1.0) == "applied"
    unfunded = m.decision(TITLES, (0,), p=0.5, w=1.0, funded=False)
    assert [m.answer(unfunded, 0, 1.0), m.answer(unfunded, 0, 1.0)] == ["unfunded", "duplicate"]
    assert m.state[f"shown/{TITLES}"][0, 1:].tolist() == [3.0, 3.0]  # what teaches nothing is answered all the same


@pytest.mark.parametrize(
    ("aggregation", "rewards", "outcomes", "aggregate"),
    [
        ("first", [(1, 0), (3, 0), (3, 5), (1, 5)], "applied duplicate duplicate duplicate", 1),
        ("last", [(1, 0), (3, 0), (3, 0), (3, 5), (2, 5)], "applied amended duplicate amended duplicate", 3),
        ("max", [(1, 0), (3, 0), (2, 0), (2, 5), (4, 5)], "applied amended duplicate amended duplicate", 3),
        ("sum", [(1, 5), (3, 6), (3, 5), (3, 0), (-2, 7)], "applied amended duplicate duplicate amended", 2),
    ],
)
@pytest.mark.parametrize("default", [None, 0.0, 0.25])
def test_what_each_aggregation_makes_of_later_rewards(
    aggregation: str, rewards: list, outcomes: str, aggregate: float, default: float | None
) -> None:
    m = machine(aggregation, default)
    payload = m.decision()
    assert [m.answer(payload, 1, float(value), event) for value, event in rewards] == outcomes.split()
    assert m.state[f"items/{FILMS}"][1].tolist() == [1.0, aggregate - (default or 0.0)]
    # The same event ids and slots of another decision, and another slot of this one, are other answers.
    assert m.answer(m.decision(), 1, 1.0, 5) == "applied"
    assert m.answer(payload, 2, 1.0, 5) == "applied"
    for batch in (1, 3, 100):
        assert m.state.equal(m.replayed(batch)) == []


def test_decisions_are_taken_once_and_gaps_are_counted() -> None:
    m = machine()
    first = m.decision()
    m.send(first)
    m.decisions += 3
    m.decision()
    m.send(first)
    counts = m.outcomes()
    assert (counts["decisions_duplicate"], counts["decisions_lost"], counts["decisions_explore"]) == (2, 3, 2)
    assert m.state[f"items/{FILMS}"][:3, 0].tolist() == [2.0, 2.0, 2.0]
    assert m.state["streams"].tolist() == [[1, 4, m.now_ms]]


def test_a_stream_that_was_silent_for_a_day_is_forgotten() -> None:
    m = machine()
    m.decision()
    m.now_ms += STREAM_IDLE_MS
    m.send(m.decision(sent=False))
    assert m.outcomes()["decisions_duplicate"] == 0
    m.now_ms += STREAM_IDLE_MS + 1
    m.decision(decision=2 << 32)
    assert m.state["streams"].tolist() == [[2, 0, m.now_ms]]
    m.give(events.frame([events.decision(m.decision(sent=False, decision=1 << 32 | 1), 1)]))
    assert (m.outcomes()["decisions_duplicate"], m.outcomes()["decisions_lost"]) == (0, 1)
    for batch in (1, 2, 100):
        assert m.state.equal(m.replayed(batch)) == []


def test_many_streams() -> None:
    m = machine()
    for round_ in range(2):
        for stream in range(200):
            context = token.decode(m.decision(sent=False))._replace(decision=stream << 32 | round_)
            m.send(token.encode(context))
    counts = m.outcomes()
    assert (counts["decisions_explore"], counts["decisions_duplicate"], counts["decisions_lost"]) == (400, 0, 0)
    assert len(m.state["streams"]) == 200
    assert m.state.equal(m.replayed(1000)) == []


# ----------------------------------------------------------------------------------------------------- the answered-set


def test_answers_are_kept_until_their_window_has_passed_and_no_longer() -> None:
    m = machine("last")
    payload = m.decision()
    m.answer(payload, 0, 1.0, 9)
    (name,) = [name for name in m.state.tables if name.startswith("answered/")]
    assert int(name.partition("/")[2]) * MINUTE_MS > m.now_ms + 60_000
    assert len(m.state[name]) == 2  # the answer, and the event id
    m.now_ms += 60_000
    assert m.answer(payload, 0, 2.0, 9) == "duplicate"
    m.now_ms = int(name.partition("/")[2]) * MINUTE_MS
    m.give(events.frame([]))
    assert name not in m.state
    assert m.answer(payload, 0, 2.0, 10) == "late"


def test_the_answered_set_grows_shrinks_and_forgets_nothing_it_needs() -> None:
    """Thousands of answers over many windows: memory follows what is open, and a repeat is always seen."""
    m = machine("sum", None)
    sizes = []
    for _ in range(12):
        payloads = [m.decision(sent=False, items=(0, 1, 2)) for _ in range(700)]
        batch = [events.reward(payload, slot, 1.0, 7) for payload in payloads for slot in range(3)]
        m.give(events.frame(batch))
        m.now_ms += 30_000
        assert m.answer(payloads[0], 2, 1.0, 7) == "duplicate"
        sizes.append(len(m.shard.answered.arrays.decision))
        m.reload()
        assert m.answer(payloads[-1], 0, 1.0, 7) == "duplicate"
    assert m.outcomes()["applied"] == 12 * 2100
    assert max(sizes[6:]) <= max(sizes[:6])
    assert m.state.equal(m.replayed(5)) == []
    twin = m.twin()
    assert twin.outcomes["duplicate"] == 24


@st.composite
def histories(draw):
    """Steps of (ms since the last, what): a decision of some policy, or a reward for one of the decisions."""
    steps = st.tuples(
        st.sampled_from([0, 1, 500, 20_000, 45_000]),
        st.integers(0, 3),
        st.booleans(),
        st.integers(0, 2),
        values,
        st.integers(0, 2),
        st.booleans(),
    )
    return draw(st.lists(steps, min_size=1, max_size=25))


@given(
    histories(),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from([None, 0.0, 0.25]),
    st.sampled_from([None, 40.0]),
    st.integers(0, 25),
)
@settings(max_examples=100, deadline=None)
def test_random_rewards_for_few_decisions_equal_the_slow_twin(
    steps, aggregation, default, half_life_s, reload_at
) -> None:
    m = machine(aggregation, default, half_life_s=half_life_s)
    payloads = [
        m.decision(FILMS if i < 2 else TITLES, (0, 1, 2) if i < 2 else (1, 0), sent=i % 2 == 0) for i in range(4)
    ]
    for i, (pause_ms, which, is_decision, slot, value, event, again) in enumerate(steps):
        m.now_ms += pause_ms
        if is_decision:
            m.send(payloads[which])
        else:
            for _ in range(1 + again):
                m.answer(payloads[which], slot % token.decode(payloads[which]).items.size, value, event)
        if i == reload_at:
            m.reload()
    twin = m.twin()
    assert {name: n for name, n in m.outcomes().items() if n} == {name: n for name, n in twin.outcomes.items() if n}
    scale = 2.0 ** -float(m.state[f"decay/{FILMS}"][0, 1])
    edges = m.shard._policies[FILMS].edges
    for j, item in enumerate("abcd"):
        for e in range(edges.indptr[j], edges.indptr[j + 1]):
            expected = np.array(twin.edges.get((FILMS, int(edges.clusters[e]), item), [0.0, 0.0])) * scale
            np.testing.assert_allclose(m.edges[e], expected, rtol=1e-9, atol=1e-12)
    for batch in (1, 4, 1000):
        assert m.state.equal(m.replayed(batch)) == []


@given(
    st.permutations(range(5)),
    st.sampled_from(["last", "max", "sum"]),
    st.sampled_from([0.0, 0.25, -1.0]),
    st.lists(st.floats(-2, 2, width=16), min_size=4, max_size=4),
)
@example([4, 3, 2, 1, 0], "last", 0.25, [1.0, 0.0, -1.0, 2.0])
@settings(max_examples=60, deadline=None)
def test_default_and_corrections_commute_and_equal_the_final_aggregate_alone(
    order, aggregation, default, rewards
) -> None:
    """Decision and rewards in any order teach what a decision and one reward, the final aggregate, teach."""
    m = machine(aggregation, default)
    payload = m.decision(sent=False)
    told = []
    for i in order:
        if i == 0:
            m.send(payload)
        else:
            m.answer(payload, 1, float(rewards[i - 1]), i)
            told.append(float(rewards[i - 1]))
    final = {"last": told[-1], "max": max(told), "sum": sum(told)}[aggregation]
    alone = machine(aggregation, default)
    alone.answer(alone.decision(), 1, final)
    np.testing.assert_allclose(m.edges, alone.edges, rtol=1e-12, atol=1e-12)


def test_without_a_default_only_answers_teach() -> None:
    m = machine("last", None)
    payload = m.decision()
    assert not m.edges.any()
    m.answer(payload, 1, 0.5)
    once = m.edges.copy()
    m.answer(payload, 1, 2.0)
    np.testing.assert_array_equal(m.edges[:, 1], once[:, 1])
    np.testing.assert_allclose(m.edges[:, 0], 4.0 * once[:, 0])
    assert once[:, 1].any()
