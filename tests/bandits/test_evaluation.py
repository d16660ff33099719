"""The evaluation: its arithmetic, its names, and that its figures are about the code that serves."""

import math

import numpy as np
import pytest

from bandits import arms, simulation, worlds
from bandits.evaluation import contestant, evaluate_bernoulli, evaluate_switching, evaluate_world, plot, summarise
from tests.bandits.arms_cases import POLICIES, policy


@pytest.fixture
def problems(tmp_path):
    """A file of four small tests."""
    rows = [f"{test},{arm},600,{30 * (arm + 1)}" for test in "abcd" for arm in range(3)]
    file = tmp_path / "problems.csv"
    file.write_text("test_id,arm,impressions,clicks\n" + "\n".join(rows) + "\n")
    return file


@pytest.mark.parametrize("on_arrival", [False, True])
@pytest.mark.parametrize("name", [n for n in POLICIES if "thompson" not in n])
def test_a_simulated_run_is_a_served_run(name, on_arrival):
    """The compiled loop and the public interface, draw by draw on the same random numbers, make the same choices."""
    p, world, horizon, delay = policy(name), worlds.switching(400, 3), 400, 3
    rng, active = np.random.default_rng(4), np.ones(3, bool)
    states, status, plays, total = p.empty(3)[None, :].copy(), np.zeros(1, np.uint8), [], 0.0
    worlds.fixed(delay).sample(rng, horizon)
    for t in range(horizon):
        draw = p.draw(states[0], active, 1, rng, arms.EXPLORE, t)
        total += world.means(t)[draw.arms[0]]
        op = arms.operations(1)
        op["arm"], op["decision"], op["time_ms"], op["log_time_ms"], op["window_ms"] = draw.arms[0], t, t, t, delay
        op["p"], op["w"], op["a"], op["c"] = draw.p, draw.w, draw.a, draw.c
        op["default"], op["new"] = math.nan if on_arrival else 0.0, world.reward(int(draw.arms[0]), t, rng)
        p.learn(states, 3, op, status)
        plays.append(op)
        if t >= delay and (on_arrival or plays[t - delay]["new"][0] != 0.0):
            answer = plays[t - delay].copy()
            answer["kind"], answer["log_time_ms"], answer["first"] = arms.ANSWER, t, on_arrival
            p.learn(states, 3, answer, status)
    run = simulation.run(p, world, worlds.fixed(delay), horizon, np.random.default_rng(4), on_arrival)
    assert run[-1] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("spec", ["thompson-beta", "thompson-normal"])
def test_simulated_thompson_finds_the_best_arm(spec):
    results = evaluate_world(lambda _: worlds.still(4), 20_000, [spec], [0, 50], seeds=4)
    assert max(r.regret for r in results) < 0.25 * (results[0].best - results[0].uniform)


def test_shares_are_between_uniform_and_best(problems):
    results = evaluate_bernoulli(problems, ["uniform", "banker", "thompson-beta"], [0, 10], seeds=3)
    assert len(results) == 3 * 2 * 3
    for result in results:
        assert result.uniform == pytest.approx(4 * 1800 * 0.1)
        assert result.best == pytest.approx(4 * 1800 * 0.15)
        assert result.curve[-1] == pytest.approx(result.regret)
        assert abs(result.share) < 0.05 if result.policy == "uniform" else 0.1 < result.share < 1.0


def test_the_seed_decides_and_threads_do_not(problems):
    def rewards(seed, threads):
        return [r.reward for r in evaluate_bernoulli(problems, ["banker", "ftrl"], [5], None, seed, None, 2, threads)]

    assert rewards(0, 1) == rewards(0, 2)
    assert rewards(0, 1) != rewards(7, 1)
    assert rewards(0, 1)[1] == rewards(1, 1)[0]


def test_a_limit_takes_fewer_tests_and_progress_is_told(problems):
    told = []
    results = evaluate_bernoulli(problems, ["banker"], [0], 2, 0, lambda done, of: told.append((done, of)), 2)
    assert results[0].best == pytest.approx(2 * 1800 * 0.15)
    assert told == [(1, 2), (2, 2)]
    with pytest.raises(arms.ParameterError, match="limit"):
        evaluate_bernoulli(problems, ["banker"], [0], 0)


def test_banker_learns_on_real_headlines(shared_data):
    results = evaluate_bernoulli(shared_data / "upworthy.csv", ["banker", "exp3"], [0, 100], limit=40, seeds=2)
    share = {(row.policy, row.delay): row.share for row in summarise(results)}
    assert share["banker", "0"] > 0.4
    assert share["banker", "100"] > 0.4
    assert share["exp3", "0"] < 0.2


def test_banker_is_robust_where_the_world_switches():
    results = evaluate_switching(["banker", "ftrl", "uniform"], [0, 100], horizon=40_000, seeds=2)
    regret = {(row.policy, row.delay): row.regret for row in summarise(results)}
    assert regret["banker", "0"] < 0.15 * regret["uniform", "0"]
    assert regret["banker", "100"] < 0.25 * regret["uniform", "100"]
    assert regret["ftrl", "0"] < 0.25 * regret["uniform", "0"]


@pytest.mark.parametrize(
    "delay", [worlds.geometric(20), worlds.heavy_tailed(20), worlds.never(0.5, worlds.fixed(5))], ids=lambda d: d.name
)
def test_every_delay_can_be_learned_from(delay):
    results = evaluate_world(lambda _: worlds.still(4), 20_000, ["banker", "banker:classic"], [delay], seeds=3)
    for result in results:
        assert result.share > 0.4


def test_summaries_give_the_mean_and_the_bad_side():
    results = evaluate_switching(["uniform"], [0], horizon=2000, seeds=5)
    (row,) = summarise(results)
    regret = [r.regret for r in results]
    assert row.seeds == 5
    assert row.regret == pytest.approx(np.mean(regret))
    assert row.regret < row.regret_p90 <= max(regret)
    assert row.share_p10 < row.share


def test_names_of_policies():
    assert contestant("uniform").policy is None
    assert contestant("banker:tsallis").policy.regularizer == "tsallis"
    assert contestant("banker:classic").on_arrival
    assert not contestant("banker").on_arrival
    assert contestant("ucb1:on-arrival").on_arrival
    assert contestant("epsilon-greedy:epsilon=0.05").policy.epsilon == 0.05
    for spec, field in [
        ("magic", "algorithm"),
        ("banker:fast", "policy"),
        ("banker:c=x", "c"),
        ("banker:size=2", "size"),
        ("uniform:x", "policy"),
    ]:
        with pytest.raises(arms.ParameterError) as error:
            contestant(spec)
        assert error.value.field == field
    with pytest.raises(arms.ParameterError, match="delay"):
        evaluate_switching(["banker"], [-1])


def test_curves_are_drawn(tmp_path):
    file = tmp_path / "regret.png"
    plot(evaluate_switching(["banker", "uniform"], [0, 10], horizon=2000, seeds=2), file)
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(arms.ParameterError):
        plot([], file)
