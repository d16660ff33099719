"""What the tests of K-armed policies share: the policies, and histories to feed them."""

import numpy as np

from bandits import arms

POLICIES = {
    "banker": ("banker", {}),
    "banker-classic": ("banker", {"rule": "classic", "max_outstanding": 64}),
    "banker-tsallis": ("banker", {"rule": "classic", "regularizer": "tsallis", "max_outstanding": 64}),
    "thompson-beta": ("thompson-beta", {"propensity": True}),
    "thompson-normal": ("thompson-normal", {"propensity": True}),
    "ucb1": ("ucb1", {}),
    "epsilon-greedy": ("epsilon-greedy", {}),
    "exp3": ("exp3", {}),
    "ftrl": ("ftrl", {}),
}


def policy(name):
    """The policy of that name in POLICIES."""
    return arms.make(*POLICIES[name])


def history(rng, n_arms, n, *, default=0.0, banks=1, reward=None, amend=True, window_ms=50):
    """`n` operations: plays with random snapshots, and answers that come late, never, twice or before their play."""
    reward = reward or (lambda: float(rng.random() < 0.4))
    ops = arms.operations(n)
    pending, now, sequence, i = [], 1_000, 0, 0
    while i < n:
        now += int(rng.integers(0, 3))
        if pending and rng.random() < 0.45:
            play, old = pending.pop(int(rng.integers(len(pending))))
            if now > play["time_ms"] + window_ms:
                continue
            ops[i] = play
            ops[i]["kind"], ops[i]["log_time_ms"] = arms.ANSWER, now
            ops[i]["first"] = np.isnan(old)
            ops[i]["old"], ops[i]["new"] = (0.0 if np.isnan(old) else old), reward()
            if amend and rng.random() < 0.2:
                pending.append((play, ops[i]["new"]))
        else:
            sequence += 1
            ops[i]["decision"] = (7 << 32) | sequence
            ops[i]["bank"], ops[i]["arm"] = rng.integers(banks), rng.integers(n_arms)
            ops[i]["time_ms"], ops[i]["log_time_ms"], ops[i]["window_ms"] = now, now, window_ms
            ops[i]["p"], ops[i]["w"] = rng.uniform(0.02, 1), rng.random()
            ops[i]["a"], ops[i]["c"], ops[i]["default"] = rng.normal(), rng.random(), default
            if rng.random() < 0.8:
                pending.append((ops[i].copy(), default))
        i += 1
    return ops


def learned(a_policy, n_arms, ops, banks=1):
    """States of `banks` banks after `ops`, and the statuses."""
    states = np.stack([a_policy.empty(n_arms) for _ in range(banks)])
    status = np.full(len(ops), 255, np.uint8)
    a_policy.learn(states, n_arms, ops, status)
    assert set(status) <= {arms.LEARNED, arms.UNFUNDED}
    return states, status


def live(a_policy, n_arms, rounds, seed, reward_of, delay=0, default=0.0, window_ms=1000):
    """(arms chosen, state) of a bank that is played round by round; rewards are reward_of(arm, t, uniform number)."""
    rng, luck = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    states = a_policy.empty(n_arms)[None, :].copy()
    active, status = np.ones(n_arms, bool), np.zeros(1, np.uint8)
    chosen, plays = [], []
    for t in range(rounds):
        draw = a_policy.draw(states[0], active, 1, rng, arms.EXPLORE, t)
        op = arms.operations(1)
        op["arm"], op["decision"], op["time_ms"], op["log_time_ms"] = draw.arms[0], t, t, t
        op["p"], op["w"], op["a"], op["c"] = draw.p, draw.w, draw.a, draw.c
        op["default"], op["window_ms"], op["old"] = default, window_ms, 0.0 if np.isnan(default) else default
        op["new"] = reward_of(int(draw.arms[0]), t, luck.random())
        chosen.append(int(draw.arms[0]))
        plays.append(op)
        a_policy.learn(states, n_arms, op, status)
        if t >= delay:
            answer = plays[t - delay].copy()
            answer["kind"], answer["log_time_ms"], answer["first"] = arms.ANSWER, t, np.isnan(default)
            a_policy.learn(states, n_arms, answer, status)
    return chosen, states[0]
