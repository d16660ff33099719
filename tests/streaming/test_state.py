"""Tables, deltas and base images against a dictionary of arrays, under random operations."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streaming import state as state_module
from streaming.state import State, decode

NAMES = ("edges/1", "banks/1", "answered/5", "control")
SHAPES = {"edges/1": ("<f8", 2), "banks/1": ("<f8", 5), "answered/5": ("<u8", 3), "control": ("|u1", 1)}
names = st.sampled_from(NAMES)


def rows(name: str, count: int, seed: int) -> np.ndarray:
    dtype, columns = SHAPES[name]
    return np.random.default_rng(seed).integers(0, 250, (count, columns)).astype(dtype)


class Machine(RuleBasedStateMachine):
    """`state` is written; `follower` applies its deltas; `base` and `deltas` are what a store would hold."""

    @initialize()
    def begin(self) -> None:
        self.chunk, state_module.CHUNK = state_module.CHUNK, 4
        self.state, self.follower = State(), State()
        self.model: dict[str, np.ndarray] = {}
        self.told: dict[str, np.ndarray] = {}
        self.base: dict[str, bytes] = {}
        self.deltas: list[bytes] = []
        self.seed = 0

    def teardown(self) -> None:
        state_module.CHUNK = self.chunk

    def new(self, name: str, count: int) -> np.ndarray:
        self.seed += 1
        return rows(name, count, self.seed)

    @rule(name=names, count=st.integers(0, 11))
    def write(self, name: str, count: int) -> None:
        self.model[name] = self.new(name, count)
        self.state.write(name, self.model[name].copy())

    @rule(name=names, count=st.integers(1, 6))
    def append(self, name: str, count: int) -> None:
        more = self.new(name, count)
        before = self.model.get(name, more[:0])
        assert self.state.append(name, more) == len(before)
        self.model[name] = np.concatenate([before, more])

    @rule(name=names, index=st.lists(st.integers(0, 13), max_size=6, unique=True))
    def put(self, name: str, index: list[int]) -> None:
        if name not in self.model:
            return
        at, values = np.array(index, np.int64), self.new(name, len(index))
        grown = np.zeros((max(len(self.model[name]), max(index, default=-1) + 1), values.shape[1]), values.dtype)
        grown[: len(self.model[name])] = self.model[name]
        grown[at] = values
        self.model[name] = grown
        self.state.put(name, at, values)

    @rule(name=names, index=st.lists(st.integers(0, 13), min_size=1, max_size=6))
    def change_in_place(self, name: str, index: list[int]) -> None:
        at = np.array([i for i in index if i < len(self.model.get(name, ()))], np.int64)
        if len(at):
            values = self.new(name, len(at))
            for i, value in zip(at, values, strict=True):
                self.model[name][i] = self.state[name][i] = value
            self.state.changed(name, at)

    @rule(name=names)
    def drop(self, name: str) -> None:
        self.model.pop(name, None)
        self.state.drop(name)

    def on_change(self, name: str, index: np.ndarray | None) -> None:
        """Mirrors what it is told of, as a replica does."""
        if name not in self.follower:
            self.told.pop(name, None)
        elif index is None:
            self.told[name] = self.follower[name].copy()
        else:
            grown = np.zeros_like(self.follower[name])
            old = self.told.get(name, grown[:0])
            grown[: len(old)] = old
            grown[index] = self.follower[name][index]
            self.told[name] = grown

    @rule(twice=st.booleans())
    def commit(self, twice: bool) -> None:
        delta = self.state.take_delta()
        self.deltas.append(delta)
        for _ in range(1 + twice):
            self.follower.apply(delta, self.on_change)
        assert list(decode(self.state.take_delta())) == []
        self.check(self.follower)
        assert self.told.keys() == self.model.keys()
        assert all(np.array_equal(self.told[name], self.model[name]) for name in self.told)

    @rule(by_follower=st.booleans())
    def fold(self, by_follower: bool) -> None:
        """The learner folds after a commit; a loaded learner in its place gives the same base."""
        self.commit(False)
        folding = State() if by_follower else self.state
        if by_follower:
            folding.load(self.base.values(), self.deltas)
            self.state.take_parts()
        parts, gone = folding.take_parts()
        if by_follower:
            self.check(folding)
        for name in gone:
            self.base.pop(name, None)
        self.base.update(parts)
        self.deltas = []
        again, none = folding.take_parts()
        assert (again, none) == ({}, set())
        whole = {
            state_module.part_name(name, chunk)
            for name, table in self.model.items()
            for chunk in range(max(1, -(-len(table) // 4)))
        }
        assert self.base.keys() <= whole  # a chunk of zeros that `put` leapt over has no part

    @rule()
    def reload(self) -> None:
        self.commit(False)
        other = State()
        other.load(dict(sorted(self.base.items(), key=lambda part: hash(part[0]))).values(), self.deltas)
        self.check(other)

    def check(self, other: State) -> None:
        assert other.tables.keys() == self.model.keys()
        assert self.state.equal(other) == other.equal(self.state) == []
        for name, table in self.model.items():
            assert np.array_equal(other[name], table), name
            assert other[name].dtype == table.dtype

    @invariant()
    def the_state_is_the_model(self) -> None:
        if hasattr(self, "model"):
            self.check(self.state)


TestState = Machine.TestCase
TestState.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_equal_sees_any_bit_and_any_shape() -> None:
    one, other = State(), State()
    for state in (one, other):
        state.write("t", np.array([[0.0, 1.0], [2.0, 3.0]]))
    assert one.equal(other) == []
    other["t"][0, 0] = -0.0
    assert one.equal(other) == ["t"]
    other.write("t", np.array([[0.0, 1.0]]))
    assert one.equal(other) == other.equal(one) == ["t"]
    other.write("t", np.array([[0.0, 1.0], [2.0, 3.0]]).view(np.int64))
    assert one.equal(other) == ["t"]
    other.drop("t")
    assert one.equal(other) == other.equal(one) == ["t"]


def test_few_changed_rows_make_a_small_delta_and_a_small_fold() -> None:
    state = State()
    state.write("edges/1", np.zeros((100_000, 2)))
    whole = len(state.take_delta())
    state.take_parts()
    state.changed("edges/1", np.array([3, 70_000, 3]))
    assert len(state.take_delta()) < 200 < whole
    parts, gone = state.take_parts()
    assert set(parts) == {"edges/1#0", "edges/1#2"}
    assert not gone


def test_a_table_that_shrinks_leaves_no_old_rows_behind() -> None:
    state = State()
    state.write("t", np.ones((10, 1)))
    state.tables["t"].resize(4)
    state.tables["t"].resize(9)
    assert state["t"][:, 0].tolist() == [1.0] * 4 + [0.0] * 5


def test_rows_beyond_the_table_are_an_error() -> None:
    state = State()
    state.write("t", np.ones((3, 1)))
    with pytest.raises(IndexError):
        state.put("t", np.array([-9]), np.ones((1, 1)))
