"""The simulated worlds, their delays, and the reader of real problems."""

import numpy as np
import pytest

from bandits import worlds


def some_worlds():
    return [
        worlds.still(),
        worlds.switching(5000),
        worlds.anticorrelated(1000, 10),
        worlds.shifted(worlds.still()),
        worlds.growing(1100),
        worlds.rare(50),
    ]


@pytest.mark.parametrize("world", some_worlds(), ids=lambda world: world.name)
def test_rewards_have_the_means_they_say(world):
    rng = np.random.default_rng(0)
    for t in (0, 1, 17, 600, 999):
        arm = world.best(t)
        mean = world.means(t)[arm]
        assert mean == world.means(t).max()
        rewards = [world.reward(arm, t, rng) for _ in range(4000)]
        assert np.mean(rewards) == pytest.approx(mean, abs=5 * np.std(rewards) / 4000**0.5 + 1e-12)


@pytest.mark.parametrize("world", some_worlds(), ids=lambda world: world.name)
def test_totals_are_the_sum_of_the_means(world):
    for horizon in (1, 7, 1000):
        total = sum(world.means(t) for t in range(horizon))
        np.testing.assert_allclose(world.totals(horizon), total, rtol=1e-12)


def test_the_switching_world_jumps_but_keeps_its_best_arm():
    world = worlds.switching(10_000)
    lengths = np.diff(world.starts)
    assert lengths[-1] / lengths[-2] == pytest.approx(1.6, abs=0.01)
    assert world.means(0)[1] == 0.0
    assert world.means(1)[1] == 0.875
    assert {world.best(t) for t in range(0, 10_000, 7)} == {0}
    totals = world.totals(10_000)
    assert totals[0] - totals[1] == pytest.approx(1250)


def test_the_anticorrelated_world_is_the_opposite_a_delay_later():
    world = worlds.anticorrelated(1000, 4)
    assert world.starts[:3].tolist() == [0, 10, 20]


def test_delays_are_what_they_say():
    rng = np.random.default_rng(0)
    assert set(worlds.fixed(7).sample(rng, 10).tolist()) == {7}
    assert worlds.fixed(7).window == 7
    assert worlds.fixed(5, window=5000).window == 5000
    sample = worlds.geometric(50).sample(rng, 20_000)
    assert sample.min() >= 0
    assert sample.mean() == pytest.approx(50, rel=0.05)
    sample = worlds.heavy_tailed(100).sample(rng, 20_000)
    assert np.median(sample) == pytest.approx(100, rel=0.05)
    assert sample.max() > 100_000
    sample = worlds.never(0.3, worlds.fixed(9)).sample(rng, 20_000)
    assert np.mean(sample == -1) == pytest.approx(0.3, abs=0.02)
    assert set(sample.tolist()) == {-1, 9}


def test_real_problems_are_read(shared_data):
    problems = worlds.read_problems(shared_data / "upworthy.csv")
    assert len(problems) == 1912
    assert problems[0].horizon == 2629 + 2661 + 2539 + 2551
    assert problems[0].rates.tolist() == [68 / 2629, 63 / 2661, 49 / 2539, 39 / 2551]


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("test_id,arm,clicks\na,0,1\n", "impressions", "no such column"),
        ("test_id,arm,impressions,clicks\na,0,10,x\n", "clicks", "line 2"),
        ("test_id,arm,impressions,clicks\na,0,10,1\na,1,-3,1\n", "impressions", "line 3"),
        ("test_id,arm,impressions,clicks\na,0,10,11\n", "clicks", "more clicks"),
        ("test_id,arm,impressions,clicks\na,0,10\n", "clicks", "line 2"),
        ("test_id,arm,impressions,clicks\n", "problems", "no rows"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, field, words):
    file = tmp_path / "problems.csv"
    file.write_text(text)
    with pytest.raises(worlds.WorldError, match=words) as error:
        worlds.read_problems(file)
    assert error.value.field == field


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(worlds.WorldError, match="cannot read"):
        worlds.read_problems(tmp_path / "nothing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(worlds.WorldError, match="UTF-8"):
        worlds.read_problems(tmp_path / "binary.csv")
