"""The ratings world: deterministic, honest about what it knows, and the place where Diag-LinUCB is compared."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bandits import ratings
from bandits.diag_linucb import DiagParameters
from bandits.graph_builder import BuildError, Ratings


def camps(n_users: int = 60, n_items: int = 60) -> Ratings:
    """Users and items of two camps; each user rated two thirds of the items and likes those of their own camp."""
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((n_users, n_items)) < 0.67)
    rating = np.where(user % 2 == item % 2, 4.5, 2.0) + rng.normal(0, 0.3, len(user))
    return Ratings(tuple(map(str, range(n_users))), tuple(map(str, range(n_items))), user, item, rating)


def test_the_model_of_likes_finds_the_camps() -> None:
    table = camps()
    click = ratings.fit_likes(table, np.random.default_rng(1))
    same = np.arange(60)[:, None] % 2 == np.arange(60) % 2
    assert click[same].mean() > 0.8
    assert click[~same].mean() < 0.2


def test_a_run_is_a_function_of_the_seed_and_the_learners_learn() -> None:
    table = camps()
    steps: list[str] = []
    runs = [
        ratings.run_ratings(table, seed=3, rounds=1500, k=5, points=3, progress=lambda step, *_: steps.append(step))
        for _ in range(2)
    ]
    assert set(steps) == {"world", *ratings.POLICIES}
    for run in runs:
        for result in run["policies"].values():
            assert result.pop("us_per_round") > 0.0
    assert runs[0] == runs[1]
    rate = {name: result["click_rate"] for name, result in runs[0]["policies"].items()}
    assert rate["diag-linucb"] > 1.3 * rate["random"]
    assert rate["linucb"] > 1.3 * rate["random"]
    assert all(result["share_of_best"] <= 1.05 for result in runs[0]["policies"].values())
    assert len(runs[0]["policies"]["random"]["curve"]) == 3


def test_full_linucb_is_ridge_regression() -> None:
    world = ratings.make_world(camps(), 1, 60)
    policy = ratings.LinUCB(world, np.random.default_rng(0), DiagParameters())
    rng = np.random.default_rng(2)
    x, r = [], []
    for _ in range(50):
        user, reward = int(rng.integers(60)), float(rng.random())
        policy.learn(user, np.array([7], np.uint32), np.array([reward]))
        x.append(policy.features[user])
        r.append(reward)
    rows = np.array(x)
    a = np.eye(rows.shape[1]) + rows.T @ rows
    assert_allclose(policy.theta[7], np.linalg.solve(a, rows.T @ np.array(r)), rtol=1e-8)
    out = np.empty(1)
    ratings.linucb_scores(rows[0], np.array([7], np.uint32), policy.inverse, policy.theta, 2.0, out)
    expected = policy.theta[7] @ rows[0] + 2.0 * np.sqrt(rows[0] @ np.linalg.solve(a, rows[0]))
    assert out[0] == pytest.approx(expected, rel=1e-8)


def test_bad_arguments_are_named() -> None:
    table = camps()
    for field, arguments in (
        ("policy", {"policies": ["linusb"]}), ("rounds", {"rounds": 0}), ("k", {"k": 0}), ("limit", {"limit": 3}),
    ):  # fmt: skip
        with pytest.raises(BuildError) as caught:
            ratings.run_ratings(table, **arguments)  # type: ignore[arg-type]
        assert caught.value.field == field


def test_in_the_real_world_learning_beats_random(shared_data: Path) -> None:
    path = shared_data / "movielens-latest-small" / "ratings.csv"
    result = ratings.run_ratings(path, ["diag-linucb", "random"], seed=1, rounds=3000, points=3)
    diag, random = (result["policies"][name] for name in ("diag-linucb", "random"))
    assert diag["click_rate"] > 1.25 * random["click_rate"]
    assert diag["curve"][-1] > diag["curve"][0] - 0.02
    assert result["items"] == 1000
    assert result["users"] == 610
