"""Banker-OMD: the kernels against their slow twins, scale, money, the regret identity and its growth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from bandits import arms, banker, banker_classic, mirror, worlds
from bandits.evaluation import evaluate_world
from tests.bandits.arms_cases import history, learned, live
from tests.naive import arms as naive

K = 4


def point(solver, y, factor=1.0):
    x = np.empty(len(y))
    solver(np.array(y, float), factor, x)
    return x


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_solvers_equal_bisection(y):
    assert_allclose(point(mirror.log_barrier, y), naive.log_barrier(y), rtol=1e-12)
    assert_allclose(point(mirror.tsallis, y), naive.tsallis(y), rtol=1e-12)


def test_the_solvers_are_safe_at_the_extremes():
    for solver in (mirror.log_barrier, mirror.tsallis):
        for y in ([0.0] * 10_000, list(np.linspace(0, 1e9, 10_000)), [0.0, 1e308], [-1e308, 1e308], [5.0]):
            x = point(solver, y)
            assert np.isfinite(x).all()
            assert (x > 0).all()
            assert x.sum() == pytest.approx(1.0, abs=1e-12)
            assert x.argmax() == np.argmin(y)


@pytest.mark.parametrize("default", [0.0, 0.3, math.nan])
def test_reserve_equals_its_slow_twin(default):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scale = 10.0 ** rng.uniform(-3, 3)
        ops = history(rng, K, 200, default=default, reward=lambda r=rng, s=scale: float(r.normal() * s), window_ms=70)
        states, _ = learned(arms.make("banker", {}), K, ops)
        twin = naive.Reserve(K)
        for op in ops:
            twin.learn(op)
        header = states[0][:6]
        m = 0.0 if twin.m is None else twin.m
        assert_allclose(header, [twin.V, twin.Q, twin.Qmax, twin.C, m, twin.n], rtol=1e-12, atol=1e-12)
        rows = banker.Banker().rows(states[0])
        assert_allclose(rows[:, banker.POOL], twin.pool, rtol=1e-12, atol=1e-12)
        assert_allclose(rows[:, banker.A], twin.A, rtol=1e-12, atol=1e-12)
        chances = banker.Banker().probabilities(states[0], np.ones(K, bool), 0)
        assert_allclose(chances, twin.chances(), rtol=1e-11)


@pytest.mark.parametrize("regularizer", ["log-barrier", "tsallis"])
@pytest.mark.parametrize("default", [0.0, 0.3, math.nan])
def test_classic_equals_its_slow_twin_and_conserves_money(regularizer, default):
    policy = arms.make("banker", {"rule": "classic", "regularizer": regularizer, "max_outstanding": 12})
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scale = 10.0 ** rng.uniform(-3, 3)
        ops = history(rng, K, 200, default=default, reward=lambda r=rng, s=scale: float(r.normal() * s), amend=False)
        twin = naive.Classic(K, regularizer == "log-barrier", room=12)
        states, status = policy.empty(K)[None, :].copy(), np.zeros(1, np.uint8)
        for op in ops:
            policy.learn(states, K, np.array([op], arms.OP), status)
            twin.learn(op)
            state = states[0]
            money = state[banker_classic.V] + state[banker_classic.SIGMA_OUT]
            assert money == pytest.approx(state[banker_classic.BORROWED], rel=1e-9)
            assert int(state[banker_classic.OUT]) == len(twin.waiting)
        assert_allclose(state[banker_classic.V], twin.V, rtol=1e-10)
        assert_allclose(state[banker_classic.BORROWED], twin.borrowed, rtol=1e-10)
        assert_allclose(policy.probabilities(state, np.ones(K, bool), 0), twin.chances(), rtol=1e-9)


def test_classic_counts_what_it_cannot_fund():
    policy = arms.make("banker", {"rule": "classic", "max_outstanding": 1})
    ops = arms.operations(5)
    ops["p"], ops["window_ms"], ops["decision"], ops["default"] = 0.5, 10, [1, 2, 2, 1, 3], 0.0
    ops["kind"] = [arms.PLAY, arms.PLAY, arms.ANSWER, arms.ANSWER, arms.PLAY]
    states, status = learned(policy, K, ops)
    assert status.tolist() == [0, 1, 1, 0, 0]
    late = arms.operations(1)
    late["kind"], late["log_time_ms"], late["decision"], late["p"] = arms.ANSWER, 11, 3, 0.5
    status = np.zeros(1, np.uint8)
    policy.learn(states, K, late, status)
    assert status[0] == arms.UNFUNDED
    assert states[0][banker_classic.OUT] == 0  # its window had passed, so its money is back


@pytest.mark.parametrize("rule", ["reserve", "classic"])
@pytest.mark.parametrize("default", [0.0, math.nan])
def test_rewards_times_a_power_of_two_give_the_same_bits(rule, default):
    policy = arms.make("banker", {"rule": rule})

    def chosen(factor):
        return live(policy, K, 400, 3, lambda arm, t, u: factor * (u - 0.2 * arm + (t % 7) * 0.1), 5, default)

    one = chosen(1.0)
    for power in (-900, -30, 1, 40, 900):
        arms_chosen, state = chosen(2.0**power)
        assert arms_chosen == one[0]
        everyone = np.ones(K, bool)
        assert policy.probabilities(state, everyone, 0).tolist() == policy.probabilities(one[1], everyone, 0).tolist()
    for factor in (1e-9, 1e9):
        arms_chosen, _ = chosen(factor)
        assert np.mean(np.array(arms_chosen) == one[0]) > 0.99  # up to rounding


def test_a_shift_costs_little_without_a_default():
    def late(offset):
        policy = arms.make("banker", {})
        chosen, _ = live(policy, K, 3000, 3, lambda arm, _t, u: offset + float(u < 0.2 + 0.2 * arm), 5, math.nan)
        return np.mean(np.array(chosen[-1000:]) == 3)

    assert late(0.0) > 0.8
    assert late(100.0) > 0.8


def test_the_baseline_is_the_mean_of_closed_windows():
    policy = arms.make("banker", {})
    ops = arms.operations(6)
    ops["p"], ops["window_ms"], ops["default"] = 0.25, 320, 0.0  # a bucket is 10 ms
    ops["decision"], ops["time_ms"] = [1, 2, 1, 2, 3, 4], [0, 1, 0, 1, 329, 330]
    ops["log_time_ms"] = [0, 1, 5, 6, 329, 330]
    ops["kind"][2:4], ops["new"][2:4] = arms.ANSWER, [1.0, 0.5]
    states, _ = learned(policy, K, ops[:5])
    assert states[0][[banker.M, banker.N]].tolist() == [0.0, 0.0]
    states, _ = learned(policy, K, ops)
    assert states[0][[banker.M, banker.N]].tolist() == [0.75, 2.0]


def test_a_new_arm_enters_at_the_pools_mean():
    for params, column in (({}, banker.POOL), ({"rule": "classic", "max_outstanding": 8}, banker_classic.POOL)):
        policy = arms.make("banker", params)
        states, _ = learned(policy, K, history(np.random.default_rng(1), K, 60, amend=False))
        grown = policy.grow(states[0], K + 1)
        pool = policy.rows(states[0])[:, column]
        assert pool.max() > 0
        assert policy.rows(grown)[K, column] == pytest.approx(pool.mean())


def divergence(x, z):
    """D_Psi(x, z) of the log-barrier."""
    return float(np.sum(x / z - 1.0 - np.log(x / z)))


@pytest.mark.parametrize("seed", range(12))
def test_the_regret_identity_holds_for_classic(seed):
    """sum <x_t - y, l_t> <= borrowed D(y, x_0) + sum sigma_t D(x_t, z_t), z_t at the dual of x_t plus l_t / sigma_t."""
    rng = np.random.default_rng(seed)
    policy = arms.make("banker", {"rule": "classic", "rho": float(rng.choice([0.0, 0.3, 1.0]))})
    states, status = policy.empty(K)[None, :].copy(), np.zeros(1, np.uint8)
    everyone, y = np.ones(K, bool), rng.dirichlet(np.ones(K))
    regret = paid = 0.0
    waiting = []
    for t in range(300):
        x = policy.probabilities(states[0], everyone, 0)
        op = arms.operations(1)
        op["arm"], op["decision"], op["window_ms"], op["default"] = arms.pick(x, rng.random()), t, 10_000, 0.0
        op["p"] = x[op["arm"][0]]
        before = states[0][banker_classic.SIGMA_OUT]
        policy.learn(states, K, op, status)
        sigma = states[0][banker_classic.SIGMA_OUT] - before
        op["kind"], op["new"] = arms.ANSWER, -1.0 if t == 0 else -float(rng.random() < 0.2 + 0.15 * op["arm"][0])
        loss = np.zeros(K)
        loss[op["arm"][0]] = -op["new"][0] / op["p"][0]
        regret += float((x - y) @ loss)
        paid += sigma * divergence(x, 1.0 / (1.0 / x + loss / sigma))
        waiting.append(op)
        while waiting and (t == 0 or rng.random() < 0.5):  # the first answer at once: it fixes the scale
            policy.learn(states, K, waiting.pop(int(rng.integers(len(waiting)))), status)
            assert status[0] == arms.LEARNED
    for op in waiting:
        policy.learn(states, K, op, status)
    bound = states[0][banker_classic.BORROWED] * divergence(y, np.full(K, 1.0 / K)) + paid
    assert regret <= bound * (1 + 1e-9)
    assert bound < 1e4  # and the bound says something


@pytest.mark.parametrize(("policy", "most"), [("banker", 3.0), ("banker:classic", 4.0)])
@pytest.mark.parametrize("delay", [0, 20])
def test_regret_grows_like_the_root(policy, most, delay):
    """Regret over sqrt(T + D) does not grow from T to 16 T; the long horizons are in benchmarks/learns.py."""

    def ratio(horizon):
        results = evaluate_world(lambda _: worlds.switching(horizon), horizon, [policy], [delay], seeds=6)
        return np.mean([r.regret for r in results]) / math.sqrt(horizon * (1 + delay))

    assert ratio(64_000) < min(most, 1.5 * max(ratio(4_000), ratio(16_000)))


def test_the_balance_says_where_the_money_is():
    policy = arms.make("banker", {"rule": "classic"})
    ops = arms.operations(1)
    ops["p"], ops["window_ms"] = 0.25, 10
    states, _ = learned(policy, K, ops)
    reserve, outstanding = policy.balance(states[0])
    assert outstanding > 0
    assert reserve + outstanding == pytest.approx(states[0][banker_classic.BORROWED])
    assert arms.make("banker", {}).balance(arms.make("banker", {}).empty(K)) == (2.0, 0.0)
