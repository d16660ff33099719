"""The slow twins of the K-armed policies: the formulas in plain Python, never made faster.

A twin learns operations (records of `bandits.arms.OP`) one by one and says the chances of the next play. It shares only
the scalar logarithm and exponential with the kernels.
"""

import math

from bandits.scalar import exp, log

PLAY, ANSWER = 0, 1


def solve(total_of, target_low):
    """The u where the decreasing function total_of(u) falls to 1, by bisection from target_low."""
    low = target_low
    high = low + 1.0
    while total_of(high) > 1.0:
        high = low + 2.0 * (high - low)
    for _ in range(200):
        middle = 0.5 * (low + high)
        if total_of(middle) > 1.0:
            low = middle
        else:
            high = middle
    return high


def log_barrier(y):
    """x_i = 1 / (y_i - min y + u), sum x = 1."""
    d = [min(v - min(y), 1e12) for v in y]
    u = solve(lambda u: sum(1.0 / (v + u) for v in d), 0.5)
    x = [1.0 / (v + u) for v in d]
    return [v / sum(x) for v in x]


def tsallis(y):
    """x_i = 1 / (y_i - min y + u)^2, sum x = 1."""
    d = [min(v - min(y), 1e12) for v in y]
    u = solve(lambda u: sum(1.0 / (v + u) ** 2 for v in d), 0.5)
    x = [1.0 / (v + u) ** 2 for v in d]
    return [v / sum(x) for v in x]


class Reserve:
    """Rule reserve of docs/algorithms.md: four numbers a play, and the reserve is the bank."""

    def __init__(self, n_arms, c=2.0):
        self.K, self.c = n_arms, c
        self.pool, self.A = [0.0] * n_arms, [0.0] * n_arms
        self.V, self.Q, self.Qmax, self.C, self.m, self.n, self.t = 2.0, 0.0, 0.0, 0.0, None, 0.0, 0
        self.buckets = {}  # slot of the ring -> [when it closes, decisions, rewards]

    def chances(self):
        return log_barrier(self.pool)

    def grow(self, n_arms):
        """New arms enter at the pool's mean."""
        more, mean = n_arms - self.K, sum(self.pool) / self.K
        self.K, self.pool, self.A = n_arms, self.pool + [mean] * more, self.A + [0.0] * more

    def borrow(self, V):
        self.pool = [y * self.V / V for y in self.pool]
        self.V = V

    def closing(self, slot):
        return self.buckets[slot][0], slot

    def teach(self, a, loss, op):
        if abs(loss) > self.C:
            if self.C > 0:
                k = self.C / abs(loss)
                self.V, self.Q, self.Qmax = self.V * k, self.Q * k * k, self.Qmax * k * k
                self.A = [v * k for v in self.A]
            self.C = abs(loss)
            if self.V < 2:
                self.borrow(2.0)
        u = loss / self.C if self.C > 0 else 0.0
        then = op["a"] * min(1.0, op["c"] / self.C) if self.C > 0 else 0.0
        self.Q += op["w"] * (u * u + 2 * u * (self.A[a] - then))
        self.Qmax = max(self.Qmax, self.Q)
        self.A[a] += u
        self.pool[a] += u / (op["p"] * self.V)
        self.pool = [y - min(self.pool) for y in self.pool]
        V = max(2.0, self.c * math.sqrt(self.Qmax / (self.K * log(2.0 + self.t))))
        if V > self.V:
            self.borrow(V)

    def learn(self, op):
        for slot in sorted((s for s, b in self.buckets.items() if b[0] <= op["log_time_ms"]), key=self.closing):
            _, k, total = self.buckets.pop(slot)
            if k > 0:
                self.m += min(1.0, 2 * k / (min(self.n, 100.0) + k)) * (total / k - self.m)
                self.n += k
        none = math.isnan(op["default"])
        if op["kind"] == PLAY and none:
            return True
        first = op["kind"] == PLAY or op["first"]
        new = op["default"] if op["kind"] == PLAY else op["new"]
        old = 0.0 if first else op["old"]
        if self.m is None and first:
            self.m = new
        self.t += bool(first)
        width = max(1, -(-int(op["window_ms"]) // 32))
        number = int(op["time_ms"]) // width
        closes = (number + 1) * width + int(op["window_ms"])
        bucket = self.buckets.setdefault(number % 34, [closes, 0.0, 0.0])
        bucket[0] = max(bucket[0], closes)  # one that came to the log after its window may meet a later one
        bucket[1] += bool(first)
        bucket[2] += new - old
        if op["p"] > 0:
            self.teach(int(op["arm"]), (self.m - new) if first else old - new, op)
        return op["p"] > 0


class Classic:
    """Rule classic of docs/algorithms.md: savings are a pooled mean, and each play waits under its decision number."""

    def __init__(self, n_arms, barrier=True, c=None, rho=0.3, room=1000):
        self.K, self.barrier, self.rho, self.room = n_arms, barrier, rho, room
        self.c = c or (0.5 if barrier else 0.3)
        self.pool, self.V, self.C, self.t, self.arrived, self.everyone, self.borrowed = (
            [0.0] * n_arms,
            0.0,
            0.0,
            0,
            0.0,
            0.0,
            0.0,
        )
        self.waiting = {}  # decision -> play
        self.hi = self.lo = None

    def sigma(self):
        out = len(self.waiting)
        late = 1 + log(1.0 + out)
        if self.barrier:
            S = 3 + self.arrived + sum(play["out"] + 1 for play in self.waiting.values())
            return self.c * math.sqrt(S / (self.K * log(2.0 + self.t) * late)) / (out + 1)
        return self.c * math.sqrt((3 + self.everyone + out + 1) / late) / (out + 1)

    def invested(self):
        return sum(play["sigma"] for play in self.waiting.values())

    def withdraw(self, sigma):
        """(savings, their dual, the dual of the play)."""
        V = max(self.V, self.rho * self.invested())
        pool = [y * self.V / V for y in self.pool] if V > self.V else list(self.pool)
        return V, pool, [y * min(1.0, V / sigma) for y in pool]

    def chances(self):
        y = self.withdraw(self.sigma())[2]
        return log_barrier(y) if self.barrier else tsallis(y)

    def settle(self, play, reward):
        if reward is None:
            loss = 0.0
        elif self.barrier:
            if abs(reward) > self.C:
                if self.C > 0:
                    k = self.C / abs(reward)
                    self.V, self.borrowed, self.arrived = self.V * k, self.borrowed * k, self.arrived * k * k
                    play["sigma"] *= k
                    for other in self.waiting.values():
                        other["sigma"] *= k
                self.C = abs(reward)
            loss = -reward / self.C if self.C > 0 else 0.0
        else:
            self.hi = reward if self.hi is None else max(self.hi, reward)
            self.lo = reward if self.lo is None else min(self.lo, reward)
            loss = (self.hi - reward) / (self.hi - self.lo) if self.hi > self.lo else 0.0
        y = list(play["y"])
        y[play["arm"]] += loss / (play["p"] * play["sigma"])
        V = self.V + play["sigma"]
        self.pool = [(self.V * a + play["sigma"] * b) / V for a, b in zip(self.pool, y, strict=True)]
        self.pool = [v - min(self.pool) for v in self.pool]
        self.V = V
        self.arrived += (play["out"] + 1) * loss * loss

    def learn(self, op):
        """Whether there was money for it: room for a play, or a play that waits for this answer."""
        for decision in [d for d, play in self.waiting.items() if op["log_time_ms"] > play["expires"]]:
            play = self.waiting.pop(decision)
            self.settle(play, None if math.isnan(play["default"]) else play["default"])
        if op["kind"] == PLAY:
            if len(self.waiting) >= self.room or not op["p"] > 0:
                return False
            sigma = self.sigma()
            V, self.pool, y = self.withdraw(sigma)
            self.borrowed += max(V, sigma) - self.V
            out = len(self.waiting)
            self.V = max(V - sigma, 0.0)
            self.waiting[int(op["decision"])] = {
                "arm": int(op["arm"]),
                "p": op["p"],
                "sigma": sigma,
                "out": out,
                "y": y,
                "expires": op["time_ms"] + op["window_ms"],
                "default": op["default"],
            }
            self.t += 1
            self.everyone += out + 1
            return True
        if int(op["decision"]) not in self.waiting:
            return False
        self.settle(self.waiting.pop(int(op["decision"])), float(op["new"]))
        return True


class Rewards:
    """What each play taught at last, one by one: the truth that running sums must agree with."""

    def __init__(self, n_arms):
        self.K = n_arms
        self.of = [{} for _ in range(n_arms)]  # arm -> decision -> reward

    def learn(self, op):
        arm, decision = self.of[int(op["arm"])], int(op["decision"])
        if op["kind"] != PLAY:
            arm[decision] = float(op["new"])
        elif not math.isnan(op["default"]):
            arm[decision] = float(op["default"])

    def beta(self):
        """(alpha, beta) of each arm."""
        clipped = [[min(1.0, max(0.0, r)) for r in arm.values()] for arm in self.of]
        return [(1 + sum(r), 1 + len(r) - sum(r)) for r in clipped]

    def normal(self):
        """(mean, sd) of each arm."""
        everything = [r for arm in self.of for r in arm.values()]
        prior = sum(everything) / len(everything)
        seen = [arm for arm in self.of if arm]
        within = sum(sum((r - sum(arm.values()) / len(arm)) ** 2 for r in arm.values()) for arm in seen)
        variance = within / max(1, len(everything) - len(seen))
        return [((sum(a.values()) + prior) / (len(a) + 1), math.sqrt(variance / (len(a) + 1))) for a in self.of]

    def mean(self):
        return [sum(arm.values()) / len(arm) if arm else math.inf for arm in self.of]

    def ucb1(self, span):
        n = sum(len(arm) for arm in self.of)
        mean = self.mean()
        return [
            m + span * math.sqrt(2 * log(float(n)) / len(a)) if a else math.inf
            for m, a in zip(mean, self.of, strict=True)
        ]


class Losses:
    """Sums of loss over propensity; Exp3's chances, and those of the hybrid regularizer."""

    def __init__(self, n_arms):
        self.K, self.L, self.t, self.D, self.hi, self.lo = n_arms, [0.0] * n_arms, 0, 0.0, 1.0, 0.0
        self.open = {}  # when it closes -> plays outstanding

    def learn(self, op):
        self.open = {closes: n for closes, n in self.open.items() if closes > op["log_time_ms"]}
        width = max(1, -(-int(op["window_ms"]) // 32))
        closes = (int(op["time_ms"]) // width + 1) * width + int(op["window_ms"])
        if op["kind"] == PLAY:
            self.D += max(0, sum(self.open.values()))
            self.open[closes] = self.open.get(closes, 0) + 1
            if math.isnan(op["default"]):
                return
        elif op["first"]:
            self.open[closes] = self.open.get(closes, 0) - 1
        first = op["kind"] == PLAY or op["first"]
        new = op["default"] if op["kind"] == PLAY else op["new"]
        self.hi, self.lo = max(self.hi, new), min(self.lo, new)
        self.t += bool(first)
        loss = (self.hi - new if first else op["old"] - new) / (self.hi - self.lo)
        self.L[int(op["arm"])] += loss / op["p"]

    def exp3(self):
        eta = math.sqrt(log(float(self.K)) / (self.K * max(1, self.t)))
        x = [exp(-eta * (v - min(self.L))) for v in self.L]
        return [v / sum(x) for v in x]

    def ftrl(self):
        """argmin <L, x> - 2 sqrt(t) sum sqrt x + b sum x ln x, by bisection within bisection."""
        a = math.sqrt(self.t + 1)
        b = math.sqrt(2 * (self.D + max(0, sum(self.open.values()))) / log(float(self.K)))

        def part(gap):  # the x in (0, 1] where a / sqrt x - b ln x = gap
            low, high = 0.0, 1.0
            for _ in range(120):
                x = 0.5 * (low + high)
                if a / math.sqrt(x) - b * log(x) > gap:
                    low = x
                else:
                    high = x
            return high

        gap = solve(lambda gap: sum(part(v - min(self.L) + gap) for v in self.L), a)
        x = [part(v - min(self.L) + gap) for v in self.L]
        return [v / sum(x) for v in x]
