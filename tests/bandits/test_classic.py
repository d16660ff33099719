"""The usual policies against their slow twins, and the quadrature against counting."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bandits import arms, quadrature
from tests.bandits.arms_cases import history, learned
from tests.naive import arms as naive

K = 4
ALL = np.ones(K, bool)


def twins(algorithm, seed, default, reward=None):
    """(policy, state, the twin that remembers every reward, the twin that weighs losses)."""
    rng = np.random.default_rng(seed)
    ops = history(rng, K, 250, default=default, reward=reward and (lambda: reward(rng)))
    policy = arms.make(algorithm, {})
    states, _ = learned(policy, K, ops)
    rewards, losses = naive.Rewards(K), naive.Losses(K)
    for op in ops:
        rewards.learn(op)
        losses.learn(op)
    return policy, states[0], rewards, losses


def normal(rng):
    return float(rng.normal(3.0, 2.0))


@pytest.mark.parametrize("default", [0.0, 0.3, math.nan])
@pytest.mark.parametrize("reward", [None, normal])
def test_thompson_equals_the_posterior_of_all_rewards(default, reward):
    for seed in range(10):
        policy, state, rewards, _ = twins("thompson-beta", seed, default, reward)
        assert_allclose(np.transpose(policy.posterior(state)), rewards.beta(), rtol=1e-12, atol=1e-12)
        policy, state, rewards, _ = twins("thompson-normal", seed, default, reward)
        assert_allclose(np.transpose(policy.means(state)), rewards.normal(), rtol=1e-9)


@pytest.mark.parametrize("default", [0.0, math.nan])
def test_ucb1_and_greedy_equal_the_formula(default):
    for seed in range(10):
        policy, state, rewards, losses = twins("ucb1", seed, default, normal)
        draw = policy.draw(state, ALL, K, np.random.default_rng(0), arms.EXPLORE, 0)
        expected = np.array(rewards.ucb1(losses.hi - losses.lo))
        assert_allclose(draw.scores, expected[draw.arms], rtol=1e-12)
        policy, state, rewards, _ = twins("epsilon-greedy", seed, default, normal)
        mean = np.array(rewards.mean())
        expected = np.where(mean == mean.max(), 0.9 / (mean == mean.max()).sum(), 0.0) + 0.1 / K
        assert_allclose(policy.probabilities(state, ALL, 0), expected, rtol=1e-12)


@pytest.mark.parametrize("default", [0.0, 0.3, math.nan])
@pytest.mark.parametrize("reward", [None, normal])
def test_exp3_and_ftrl_equal_their_slow_twins(default, reward):
    for seed in range(10):
        policy, state, _, losses = twins("exp3", seed, default, reward)
        assert_allclose(policy.probabilities(state, ALL, 0), losses.exp3(), rtol=1e-11)
        policy, state, _, losses = twins("ftrl", seed, default, reward)
        assert_allclose(policy.probabilities(state, ALL, 0), losses.ftrl(), rtol=1e-9)


def test_the_quadrature_counts_right():
    rng = np.random.default_rng(0)
    alpha, beta = np.array([1.0, 30.0, 2000.0, 5.0]), np.array([1.0, 20.0, 1300.0, 40.0])
    drawn = np.bincount(rng.beta(alpha, beta, (200_000, 4)).argmax(axis=1), minlength=4) / 200_000
    assert_allclose(quadrature.best_of_betas(alpha, beta), drawn, atol=0.004)
    mean, sd = np.array([0.0, 1.0, 0.9, -3.0]), np.array([2.0, 0.01, 0.3, 1.0])
    drawn = np.bincount(rng.normal(mean, sd, (200_000, 4)).argmax(axis=1), minlength=4) / 200_000
    assert_allclose(quadrature.best_of_normals(mean, sd), drawn, atol=0.004)
    sharp = quadrature.best_of_betas(np.array([1.0, 1e6]), np.array([1.0, 1e6]))
    assert_allclose(sharp, [0.5, 0.5], atol=1e-6)


def test_thompson_has_no_propensity_for_many_arms_or_by_default():
    policy = arms.make("thompson-beta", {})
    assert np.isnan(policy.draw(policy.empty(3), np.ones(3, bool), 1, np.random.default_rng(0), 0, 0).propensities[0])
    many = quadrature.ARMS_MAX + 1
    assert np.isnan(policy.probabilities(policy.empty(many), np.ones(many, bool), 0)).all()


def test_ftrl_counts_the_plays_whose_window_is_open():
    policy = arms.make("ftrl", {})
    ops = arms.operations(4)
    ops["p"], ops["window_ms"], ops["default"], ops["time_ms"] = 0.25, 32, 0.0, [0, 0, 10, 100]
    ops["log_time_ms"] = ops["time_ms"]
    states, _ = learned(policy, K, ops)
    assert states[0][[3, 4]].tolist() == [1.0, 0 + 1 + 2 + 0]  # OUT, D
