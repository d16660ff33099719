"""One battery for every K-armed policy."""

import math

import numpy as np
import pytest
from scipy import stats

from bandits import arms, banker, banker_classic, classic
from tests.bandits.arms_cases import POLICIES, history, learned, live, policy

EVERY = pytest.mark.parametrize("name", POLICIES)
K = 5


def clicks(arm, _t, u):
    return float(u < 0.1 + 0.1 * arm)


@pytest.fixture(scope="module", params=POLICIES)
def grown_up(request):
    """(policy, a state after 300 operations)."""
    p = policy(request.param)
    states, _ = learned(p, K, history(np.random.default_rng(5), K, 300, amend=False))
    return p, states[0]


def test_the_same_seed_makes_the_same_choices(grown_up):
    p, state = grown_up
    slates = [
        [p.draw(state, np.ones(K, bool), 3, rng, arms.EXPLORE, 0).arms.tolist() for _ in range(20)]
        for rng in (np.random.default_rng(1), np.random.default_rng(1), np.random.default_rng(2))
    ]
    assert slates[0] == slates[1]
    if p.algorithm != "ucb1":  # one arm is simply the best
        assert slates[0] != slates[2]


def test_inputs_are_not_modified(grown_up):
    p, state = grown_up
    before, active, allowed = state.copy(), np.array([1, 1, 0, 1, 1], bool), np.array([1, 0, 1, 1, 1], bool)
    p.draw(state, active, 2, np.random.default_rng(0), arms.EXPLORE, 0, allowed)
    p.probabilities(state, active, 0)
    p.means(state)
    p.grow(state, K + 2)
    assert state.tobytes() == before.tobytes()
    assert active.tolist() == [1, 1, 0, 1, 1]
    assert allowed.tolist() == [1, 0, 1, 1, 1]
    ops = history(np.random.default_rng(0), K, 50)
    copy = ops.copy()
    learned(p, K, ops)
    assert (ops == copy).all()


def test_saving_and_loading_changes_nothing(grown_up):
    p, state = grown_up
    ops = history(np.random.default_rng(9), K, 100)
    kept, loaded = state[None, :].copy(), np.frombuffer(state.tobytes())[None, :].copy()
    status = np.zeros(len(ops), np.uint8)
    p.learn(kept, K, ops, status)
    type(p)(**vars(p)).learn(loaded, K, ops, status)
    assert kept.tobytes() == loaded.tobytes()


def test_probabilities_sum_to_one_over_the_active_arms(grown_up):
    p, state = grown_up
    active = np.array([1, 0, 1, 1, 0], bool)
    chances = p.probabilities(state, active, 0)
    assert chances.sum() == pytest.approx(1.0, abs=1e-9)
    assert (chances >= 0).all()
    assert (chances[~active] == 0).all()


@pytest.mark.parametrize("default", [0.0, np.nan, 0.3])
@EVERY
def test_any_delay_pattern_is_accepted(name, default):
    p = policy(name)
    paper = name in ("banker-classic", "banker-tsallis")  # aggregation "first" only
    ops = history(np.random.default_rng(3), K, 400, default=default, amend=not paper)
    ops = ops[np.random.default_rng(4).permutation(len(ops))]  # answers may come before their plays
    states, _ = learned(p, K, np.concatenate([ops, ops[ops["kind"] == arms.ANSWER]]))
    assert np.isfinite(states).all()
    assert p.rows(states[0])[:, arms.PLAYS].sum() == (ops["kind"] == arms.PLAY).sum()


@EVERY
def test_splitting_into_batches_or_banks_gives_the_same_bits(name):
    p = policy(name)
    ops = history(np.random.default_rng(6), K, 500, banks=3)
    whole, status = learned(p, K, ops, banks=3)
    parts, part_status = np.stack([p.empty(K)] * 3), []
    for some in np.array_split(ops, [1, 2, 40, 41, 300]):
        s = np.zeros(len(some), np.uint8)
        p.learn(parts, K, some, s)
        part_status.extend(s)
    assert whole.tobytes() == parts.tobytes()
    assert status.tolist() == part_status
    for bank in range(3):
        mine = ops[ops["bank"] == bank]
        mine["bank"] = 0
        assert learned(p, K, mine)[0].tobytes() == whole[bank].tobytes()


def test_every_propensity_is_the_true_probability(grown_up):
    p, state = grown_up
    rng, active = np.random.default_rng(11), np.array([1, 1, 1, 0, 1], bool)
    allowed = np.array([1, 1, 0, 1, 1], bool)
    for mask in (None, allowed):
        may = active if mask is None else active & mask
        chances = p.probabilities(state, may, 0)
        drawn = np.zeros(K)
        quick = type(p)(**{**vars(p), "propensity": False}) if "propensity" in vars(p) else p
        for _ in range(100_000 if mask is None else 20_000):
            drawn[quick.draw(state, active, 1, rng, arms.EXPLORE, 0, mask).arms[0]] += 1
        assert (drawn[chances == 0] == 0).all()
        possible = chances * drawn.sum() > 1e-3
        assert drawn[~possible].sum() <= 3
        expected = chances[possible] / chances[possible].sum() * drawn[possible].sum()
        if possible.sum() > 1:
            assert stats.chisquare(drawn[possible], expected).pvalue > 1e-4
        for _ in range(20):
            draw = p.draw(state, active, 2, rng, arms.EXPLORE, 0, mask)
            assert draw.propensities[0] == pytest.approx(chances[draw.arms[0]], rel=1e-12)
            assert np.isnan(draw.propensities[1])


def test_a_slate_is_distinct_arms_of_those_that_may_be_shown(grown_up):
    p, state = grown_up
    rng, active, allowed = np.random.default_rng(0), np.array([1, 1, 1, 0, 1], bool), np.array([0, 1, 1, 1, 1], bool)
    for mode in (arms.EXPLORE, arms.EXPLOIT):
        for k in (1, 2, 3, 9):
            draw = p.draw(state, active, k, rng, mode, 0, allowed)
            assert len(draw.arms) == min(k, 3)
            assert len(set(draw.arms.tolist())) == len(draw.arms)
            assert set(draw.arms.tolist()) <= {1, 2, 4}
            assert (np.diff(draw.scores[1:]) <= 0).all()
            assert draw.funded == p.learns_slate
            assert (draw.p > 0) == draw.funded
    assert p.draw(state, active, 1, rng, arms.EXPLORE, 0).funded
    assert p.draw(state, active, 1, rng, arms.EXPLORE, 0, active).funded  # the request takes nothing away
    assert len(p.draw(state, np.zeros(K, bool), 1, rng, arms.EXPLORE, 0).arms) == 0


@pytest.mark.parametrize(
    "rewards", [[0.0], [1e-300], [1e300], [-1e300], [1e-300, 1e300], [0.5], [-1e300, 1e300, 0.0, 1e-300]]
)
@EVERY
def test_no_reward_makes_a_nan(name, rewards):
    p = policy(name)
    for n_arms, default in ((3, 0.0), (1, 0.0), (3, np.nan)):
        chosen, state = live(p, n_arms, 40, 1, lambda _a, t, _u: rewards[t % len(rewards)], delay=3, default=default)
        assert np.isfinite(state).all()
        chances = p.probabilities(state, np.ones(n_arms, bool), 0)
        assert chances.sum() == pytest.approx(1.0, abs=1e-9)
        assert np.isfinite(np.array(p.means(state))[0]).all()
        assert set(chosen) <= set(range(n_arms))


@EVERY
def test_ten_thousand_arms(name):
    p = arms.make(POLICIES[name][0], {**POLICIES[name][1], "max_outstanding": 4} if "banker" in name else {})
    _, state = live(p, 10_000, 5, 1, clicks, window_ms=1)
    assert np.isfinite(state).all()
    if "thompson" not in name:
        assert p.probabilities(state, np.ones(10_000, bool), 0).sum() == pytest.approx(1.0, abs=1e-9)


def test_a_new_arm_is_possible_and_old_ones_keep_what_they_know(grown_up):
    p, state = grown_up
    grown = p.grow(state, K + 2)
    assert p.arms(grown) == K + 2
    assert len(grown) == p.size(K + 2)
    assert p.rows(grown)[:K].tobytes() == p.rows(state).tobytes()
    assert p.probabilities(grown, np.ones(K + 2, bool), 0)[K:].min() > 0 or p.algorithm == "ucb1"
    ops = history(np.random.default_rng(2), K + 2, 100)
    p.learn(grown[None, :], K + 2, ops, np.zeros(100, np.uint8))
    assert np.isfinite(grown).all()
    with pytest.raises(arms.ParameterError, match="shrink"):
        p.grow(grown, K)


@EVERY
def test_it_learns_which_arm_is_best(name):
    chosen, state = live(policy(name), 3, 3000, 4, lambda arm, _t, u: float(u < (0.1, 0.2, 0.8)[arm]), 2, window_ms=2)
    late = np.bincount(chosen[-1000:], minlength=3) / 1000
    assert late[2] > (0.6 if name in ("exp3", "ftrl", "banker-classic", "banker-tsallis") else 0.8)
    mean, width = policy(name).means(state)
    assert mean[2] == pytest.approx(0.8, abs=0.05)
    assert width[2] < width[:2].min()


def test_the_counts_follow_the_contract():
    p = policy("banker")
    ops = arms.operations(4)
    ops["p"], ops["window_ms"] = 0.5, 10
    ops[1]["kind"], ops[1]["first"], ops[1]["new"] = arms.ANSWER, 1, 2.0  # no default: the first answer
    ops[2]["kind"], ops[2]["old"], ops[2]["new"] = arms.ANSWER, 2.0, 5.0  # amended
    ops[3]["default"], ops[3]["arm"] = 0.25, 1
    states, _ = learned(p, 2, ops)
    assert p.rows(states[0])[:, :3].tolist() == [[1.0, 5.0, 1.0], [1.0, 0.25, 1.0]]


def test_zero_epsilon_is_greedy():
    p = arms.make("epsilon-greedy", {"epsilon": 0.0})
    states, _ = learned(p, K, history(np.random.default_rng(8), K, 200))
    best = np.zeros(K)
    best[p.means(states[0])[0].argmax()] = 1.0
    assert p.probabilities(states[0], np.ones(K, bool), 0).tolist() == best.tolist()


def test_a_draw_never_falls_back_on_an_impossible_arm():
    almost_one = np.nextafter(1.0, 0.0)
    assert arms.pick(np.array([0.2, 0.8, 0.0]), almost_one) == 1
    assert arms.pick(np.array([0.1, 0.1, 0.1, 0.0]), almost_one) < 3
    assert arms.pick(np.array([0.0, 1.0]), 0.0) == 1


@pytest.mark.parametrize(
    ("algorithm", "params", "field"),
    [
        ("magic", {}, "algorithm"),
        ("banker", {"regularizer": "entropy"}, "regularizer"),
        ("banker", {"regularizer": "tsallis"}, "regularizer"),
        ("banker", {"rule": "best"}, "rule"),
        ("banker", {"c": 0}, "c"),
        ("banker", {"c": "big"}, "c"),
        ("banker", {"c": 10**400}, "c"),
        ("banker", {"c": math.nan}, "c"),
        ("banker", {"c": True}, "c"),
        ("banker", {"rho": 10**400}, "rho"),
        ("banker", {"rho": -1}, "rho"),
        ("banker", {"rule": "classic", "max_outstanding": 0}, "max_outstanding"),
        ("banker", {"rule": "classic", "max_outstanding": 2.0}, "max_outstanding"),
        ("epsilon-greedy", {"epsilon": 2}, "epsilon"),
        ("epsilon-greedy", {"epsilon": True}, "epsilon"),
        ("thompson-beta", {"alpha": 1}, "alpha"),
        ("thompson-beta", {"propensity": "yes"}, "propensity"),
        ("ucb1", {"alpha": 1}, "alpha"),
    ],
)
def test_a_wrong_parameter_is_named(algorithm, params, field):
    with pytest.raises(arms.ParameterError) as error:
        arms.make(algorithm, params)
    assert error.value.field == field
    assert str(error.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("algorithm", "whole", "kernels"),
    [
        ("banker", {"c": 2}, (banker.learn_reserve, banker.weigh)),
        ("banker", {"rule": "classic", "c": 1, "rho": 0}, (banker_classic.learn_classic, banker_classic.weigh)),
        ("epsilon-greedy", {"epsilon": 0}, (classic.weigh_greedy,)),
    ],
)
def test_a_whole_number_compiles_no_kernel_anew(algorithm, whole, kernels):
    """A configuration's 2 is 2.0: a server must not stop for seconds to compile its kernels for whole numbers."""

    def used(params):
        p = arms.make(algorithm, params)
        states, _ = learned(p, K, history(np.random.default_rng(1), K, 20, amend=False))
        p.draw(states[0], np.ones(K, bool), 1, np.random.default_rng(1), arms.EXPLORE, 0)
        return [len(kernel.signatures) for kernel in kernels]

    assert used({name: float(v) if name in ("c", "rho", "epsilon") else v for name, v in whole.items()}) == used(whole)


@EVERY
def test_scores_are_numbers_before_anything_is_learned(name):
    p = policy(name)
    draw = p.draw(p.empty(K), np.ones(K, bool), K, np.random.default_rng(0), arms.EXPLORE, 0)
    assert np.isfinite(draw.scores).all()
    assert sorted(draw.arms.tolist()) == list(range(K))
