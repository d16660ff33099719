"""Control records: each does what it says, each error names its field, and an error changes nothing."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import control
from streaming.control import (
    ControlError,
    ControlState,
    GraphPut,
    ItemDelete,
    ItemPut,
    KeyAdd,
    PolicyDelete,
    PolicyPut,
    PolicySpec,
    RewardContract,
    check_spec,
    from_json,
    to_json,
)

BANKER, DIAG = PolicySpec("banker"), PolicySpec("diag-linucb")
RECORDS = [
    PolicyPut("p", BANKER, ["a", "b"]),
    PolicyPut("p", BANKER, ["b", "c"]),
    PolicyPut("p", PolicySpec("thompson-beta"), ["a"]),
    PolicyPut("p", BANKER),
    PolicyPut("p", BANKER, []),
    PolicyPut("q", DIAG),
    PolicyPut("q", DIAG, ["a"]),
    PolicyPut("r", PolicySpec("banker", max_segments=0), ["a"]),
    PolicyDelete("p"),
    PolicyDelete("q"),
    ItemPut("p", "a"),
    ItemPut("p", "b", True),
    ItemPut("p", "d"),
    ItemPut("q", "film", True),
    ItemPut("q", "film", False),
    ItemDelete("p", "a"),
    ItemDelete("p", "zzz"),
    GraphPut("q", "blob1"),
    GraphPut("q", "blob2", True),
    GraphPut("p", "blob1"),
    KeyAdd(3, "ab" * 16, 5),
]


def made(*records) -> ControlState:
    state = ControlState()
    for record in records:
        state.apply(state.applied + 1, record)
    return state


def refused(state: ControlState, record) -> ControlError:
    before = state.encode()
    with pytest.raises(ControlError) as caught:
        state.check(record)
    assert state.encode() == before
    return caught.value


def test_a_policy_is_made_changed_and_removed() -> None:
    state = made(KeyAdd(1, "00ff", 9), PolicyPut("p", BANKER, ["a", "b"]))
    policy = state.policies["p"]
    assert (policy.number, policy.version, policy.next_item) == (2, 2, 2)
    assert state.keys[1].secret == b"\x00\xff"
    spec = PolicySpec("banker", RewardContract(5_000, None, "max"))
    state.apply(3, PolicyPut("p", spec))
    assert (policy.number, policy.version, policy.spec) == (2, 3, spec)
    assert [item.id for item in policy.items] == ["a", "b"]
    assert state.apply(4, PolicyDelete("p")) is policy
    assert state.policies == {}
    assert state.apply(5, PolicyPut("p", BANKER, ["a"])).number == 5


def test_arms_keep_their_rows_and_numbers_are_never_used_again() -> None:
    policy = made(PolicyPut("p", BANKER, ["a", "b"]), PolicyPut("p", BANKER, ["c", "b"])).policies["p"]
    assert [(item.id, item.number, item.removed) for item in policy.items] == [
        ("a", 0, True), ("b", 1, False), ("c", 2, False)
    ]  # fmt: skip
    state = made(PolicyPut("p", BANKER, ["a", "b"]), ItemDelete("p", "a"), ItemPut("p", "a", True))
    policy = state.policies["p"]
    assert [(item.id, item.number, item.paused, item.removed) for item in policy.items] == [
        ("a", 0, False, True), ("b", 1, False, False), ("a", 2, True, False)
    ]  # fmt: skip
    assert policy.version == 3
    state.apply(4, ItemPut("p", "a", False))
    assert not policy.items[2].paused
    assert len(policy.items) == 3


def test_graphs_carry_their_lineage_only_where_clusters_are_kept() -> None:
    state = made(PolicyPut("q", DIAG), GraphPut("q", "one", True))
    policy = state.policies["q"]
    assert policy.graph == control.GraphRef("one", 2, 2)
    state.apply(3, GraphPut("q", "two", True))
    assert policy.graph == control.GraphRef("two", 3, 2)
    state.apply(4, GraphPut("q", "three"))
    assert policy.graph == control.GraphRef("three", 4, 4)
    assert policy.version == 4


def test_pausing_an_item_of_a_graph() -> None:
    state = made(PolicyPut("q", DIAG), ItemPut("q", "film", True))
    assert list(state.policies["q"].paused) == ["film"]
    state.apply(3, ItemPut("q", "film"))
    assert not state.policies["q"].paused
    assert state.policies["q"].version == 3


@pytest.mark.parametrize(
    ("record", "field", "words"),
    [
        (PolicyDelete("x"), "policy", "no policy 'x'"),
        (ItemPut("x", "a"), "policy", "no policy 'x'"),
        (ItemDelete("x", "a"), "policy", "no policy 'x'"),
        (GraphPut("x", "blob"), "policy", "no policy 'x'"),
        (ItemDelete("p", "zzz"), "item", "no item 'zzz'"),
        (ItemDelete("p", "gone"), "item", "no item 'gone'"),
        (GraphPut("p", "blob"), "graph", "only diag-linucb"),
        (PolicyPut("p", PolicySpec("ucb1"), ["a"]), "algorithm", "delete it first"),
        (PolicyPut("p", PolicySpec("banker", parameters={"rule": "classic"})), "algorithm", "delete it first"),
        (PolicyPut("q", PolicySpec("diag-linucb", parameters={"half_life_s": 9.0})), "algorithm", "delete it first"),
        (PolicyPut("p", BANKER, ["a", "b", "a"]), "arms", "named twice"),
        (PolicyPut("p", BANKER, []), "arms", "at least one"),
        (PolicyPut("new", BANKER), "arms", "at least one"),
        (PolicyPut("q", DIAG, ["a"]), "arms", "come with its graph"),
        (PolicyPut("p", BANKER, [str(i) for i in range(control.ARMS_MAX)]), "arms", "at most 10000"),
        (PolicyPut("new", PolicySpec("bankr"), ["a"]), "algorithm", "not one of"),
    ],
)
def test_each_error_names_its_field_and_changes_nothing(record, field: str, words: str) -> None:
    state = made(PolicyPut("p", BANKER, ["a", "gone"]), ItemDelete("p", "gone"), PolicyPut("q", DIAG))
    error = refused(state, record)
    assert error.field == field
    assert words in str(error)


def test_a_policy_is_full_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ARMS_MAX", 3)
    state = made(PolicyPut("p", BANKER, ["a", "b"]), ItemDelete("p", "a"), ItemPut("p", "c"))
    assert refused(state, ItemPut("p", "d")).field == "item"
    assert refused(state, PolicyPut("p", BANKER, ["b", "d"])).field == "arms"
    state.check(ItemPut("p", "b", True))
    state.check(PolicyPut("p", BANKER, ["c"]))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (PolicySpec("banker", RewardContract(window_ms=0)), "reward.window"),
        (PolicySpec("banker", RewardContract(window_ms=2**32)), "reward.window"),
        (PolicySpec("banker", RewardContract(aggregation="mean")), "reward.aggregation"),
        (PolicySpec("banker", RewardContract(min=1.0, max=1.0)), "reward.min"),
        (PolicySpec("banker", RewardContract(min=float("nan"))), "reward.min"),
        (PolicySpec("banker", RewardContract(max=float("inf"))), "reward.min"),
        (PolicySpec("banker", RewardContract(default=1e7)), "reward.default"),
        (PolicySpec("banker", RewardContract(default=float("nan"))), "reward.default"),
        (PolicySpec("banker", RewardContract(default=-4e38, min=-1e300, max=1e300)), "reward.default"),
        (PolicySpec("diag-linucb", RewardContract(min=-1e300, max=1.0)), "reward.min"),
        (PolicySpec("banker", max_segments=0), "max_segments"),
        (PolicySpec("banker", max_segments=1_000_001), "max_segments"),
        (PolicySpec("banker", parameters={"rho": -1.0}), "rho"),
        (PolicySpec("banker", parameters={"nonsense": 1}), "nonsense"),
        (PolicySpec("banker", RewardContract(aggregation="sum"), {"rule": "classic"}), "reward.aggregation"),
        (PolicySpec("diag-linucb", parameters={"nonsense": 1}), "nonsense"),
        (PolicySpec("diag-linucb", parameters={"alpha": "much"}), "alpha"),
        *(
            (PolicySpec("diag-linucb", parameters={field: value}), field)
            for field, value in [
                ("clusters_per_user", 0),
                ("clusters_per_user", 256),
                ("alpha", -1.0),
                ("alpha", float("nan")),
                ("mode", "greedy"),
                ("explore_share", 1.1),
                ("randomize_top", -1),
                ("fresh", "last"),
                ("fresh_share", -0.1),
                ("prior", 0.0),
                ("prior", float("inf")),
                ("temperature", 0.0),
            ]
        ),
        (PolicySpec("diag-linucb", parameters={"half_life_s": 0.0005}), "half_life"),
        (PolicySpec("diag-linucb", parameters={"half_life_s": float("nan")}), "half_life"),
    ],
)
def test_no_policy_can_have_these(spec: PolicySpec, field: str) -> None:
    with pytest.raises(ControlError) as caught:
        check_spec(spec)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "spec",
    [
        PolicySpec("diag-linucb", RewardContract(1, 0.0, "sum", 0.0, 1.0)),
        PolicySpec("diag-linucb", RewardContract(2**32 - 1, None, "last")),
        PolicySpec("banker", RewardContract(1, 3e38, "first", -1e300, 1e300)),
        PolicySpec("diag-linucb", parameters={"half_life_s": 1.0, "randomize_top": 5, "fresh": "prior"}),
        PolicySpec("banker", RewardContract(), {"rule": "classic", "regularizer": "tsallis"}),
        *(PolicySpec(name) for name in control.ALGORITHMS),
    ],
)
def test_any_policy_can_have_these(spec: PolicySpec) -> None:
    check_spec(spec)


@given(st.lists(st.sampled_from(RECORDS), max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_records_in_any_order(records) -> None:
    """check() foretells apply(), an error leaves no trace but the number, and the state survives its encoding."""
    state = ControlState()
    for record in records:
        n, before = state.applied + 1, state.encode()
        try:
            state.check(record)
            good = True
        except ControlError:
            good = False
        assert state.encode() == before
        after = ControlState.decode(before)
        if good:
            policy = after.apply(n, from_json(to_json(record)))
            assert policy is None or policy.version == n or policy.name not in after.policies
            state = after
        else:
            with pytest.raises(ControlError):
                after.apply(n, record)
            state.applied = n
        assert ControlState.decode(state.encode()) == state
        numbers = [policy.number for policy in state.policies.values()]
        assert len(set(numbers)) == len(numbers)
        for policy in state.policies.values():
            assert [item.number for item in policy.items] == list(range(policy.next_item))
            live = [item.id for item in policy.items if not item.removed]
            assert len(set(live)) == len(live)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_come_back_from_the_log(record) -> None:
    assert from_json(to_json(record)) == record


@pytest.mark.parametrize("data", [b"", b"{}", b'{"type": "restore"}', b'{"type": "policy", "name": 1}', b"\xff"])
def test_records_of_another_release_raise(data: bytes) -> None:
    with pytest.raises((msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError)):
        from_json(data)


def test_a_number_out_of_order_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        ControlState().apply(2, KeyAdd(1, "00", 0))
