"""Metrics of what was learned, from the replica's tables: outcomes, what people did, arms and banks."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import Metric

from bandits import banker, banker_classic
from server.metric_table import buckets, family
from server.plays import Plays, plays_of
from server.replica import Replica
from streaming.contract import COLUMNS, DELAY_S, OUTCOMES
from streaming.control import Policy
from streaming.token import MODES

_LOST = COLUMNS.index("decisions_lost")
_BANKS_MAX = 100  # banks of one policy that are looked at for their entropy and rate
Floats = NDArray[np.float64]


class Learned:
    """One scrape's share of it. The replica holds still meanwhile."""

    def __init__(self, replica: Replica, plays: Plays, now_ms: int) -> None:
        self._replica, self._plays, self._now_ms = replica, plays, now_ms
        self._names = {entry.number: entry.name for entry in replica.catalog.entries}
        self._policies = replica.whole()

    def collect(self) -> Iterator[Metric]:
        yield from self._outcomes()
        yield from self._told()
        yield from self._items()
        yield from self._banks()

    def _outcomes(self) -> Iterator[Metric]:
        outcomes = family("croupier_reward_outcomes_total")
        lost = 0
        for number in (0, *self._names):
            (counts,) = self._replica.total(f"outcomes/{number}", (1, len(COLUMNS)))
            lost += int(counts[_LOST])
            for outcome, count in zip(OUTCOMES, counts.tolist(), strict=False):
                outcomes.add_metric((self._names.get(number, "unknown"), outcome), count)
        yield outcomes
        yield family("croupier_decisions_lost_total", lost)

    def _told(self) -> Iterator[Metric]:
        told = [family(f"croupier_{name}") for name in ("items_shown_total", "items_answered_total", "reward_sum")]
        delay = family("croupier_reward_delay_seconds")
        for number, name in self._names.items():
            for mode, row in zip(
                MODES, self._replica.total(f"shown/{number}", (len(MODES), len(told))).tolist(), strict=True
            ):
                for each, value in zip(told, row, strict=True):
                    each.add_metric((name, mode), value)
            *counts, total_ms = self._replica.total(f"delays/{number}", (1, len(DELAY_S) + 2))[0].tolist()
            delay.add_metric((name,), buckets(DELAY_S, map(int, counts)), total_ms / 1000)
        yield from (*told, delay)
        kept = family("croupier_answers_kept")
        for number, shard in enumerate(self._replica.shards):
            tables = [name for name in shard.state.tables if name.startswith("answered/")]
            kept.add_metric((str(number),), sum(len(shard.state[name]) for name in tables))
        yield kept

    def _items(self) -> Iterator[Metric]:
        items, entropy = family("croupier_items"), family("croupier_arms_entropy")
        shown = family("croupier_distinct_items_shown")
        all_plays, fresh_plays = family("croupier_plays_total"), family("croupier_fresh_plays_total")
        for name, policy in self._policies:
            _, plays = plays_of(self._replica, policy)
            items.add_metric((name,), self._shown_items(policy, len(plays)))
            entropy.add_metric((name,), _entropy(plays) if policy.spec.is_diag else self._bank_entropy(policy))
            shown.add_metric((name,), int(np.count_nonzero(plays)))
            counted, fresh = self._plays.counts(policy.number)
            all_plays.add_metric((name,), counted)
            fresh_plays.add_metric((name,), fresh)
        yield from (items, entropy, shown, all_plays, fresh_plays)

    def _shown_items(self, policy: Policy, n: int) -> int:
        """Items that may be shown, of `n`."""
        if not policy.spec.is_diag:
            return sum(not (item.removed or item.paused) for item in policy.items)
        table = self._replica.tables.get(policy.number)
        return n - int(np.count_nonzero(table.arrays["paused"])) if table is not None else 0

    def _bank_table(self, policy: Policy) -> Floats:
        return np.concatenate([shard.state[f"banks/{policy.number}"] for shard in self._replica.shards])

    def _bank_entropy(self, policy: Policy) -> float:
        kind = policy.spec.arm_policy()
        active = np.array([not (item.removed or item.paused) for item in policy.items])
        banks = self._bank_table(policy)[:_BANKS_MAX]
        chances = [kind.probabilities(bank, active, self._now_ms) for bank in banks]
        known = [_entropy(each) for each in chances if np.isfinite(each).all()]
        return float(np.mean(known)) if known else float("nan")

    def _banks(self) -> Iterator[Metric]:
        banks, balance = family("croupier_banks"), family("croupier_bank_balance")
        borrowed, outstanding = family("croupier_bank_borrowed"), family("croupier_bank_outstanding")
        rate, closed = family("croupier_bank_learning_rate"), family("croupier_windows_closed_total")
        for name, policy in self._policies:
            if policy.spec.is_diag:
                continue
            table = self._bank_table(policy)
            banks.add_metric((name,), len(table))
            learner = policy.spec.arm_policy()
            if not isinstance(learner, banker.Banker):
                continue
            classic = learner.classic
            balance.add_metric((name,), float(table[:, banker_classic.V if classic else banker.V].sum()))
            borrowed.add_metric((name,), float(table[:, banker_classic.BORROWED].sum()) if classic else 0.0)
            outstanding.add_metric((name,), float(table[:, banker_classic.SIGMA_OUT].sum()) if classic else 0.0)
            closed.add_metric((name,), 0.0 if classic else float(table[:, banker.N].sum()))
            rate.add_metric((name,), _rate(learner, table[:_BANKS_MAX], len(policy.items)))
        yield from (banks, balance, borrowed, outstanding, rate, closed)


def _rate(learner: banker.Banker, table: Floats, n_arms: int) -> float:
    """Mean over banks of 1 / (what the next play invests), in units of the banks' scale."""
    if not learner.classic:
        return float(np.mean(1.0 / np.maximum(table[:, banker.V], banker.V_MIN)))
    barrier = learner.regularizer == "log-barrier"
    invested = [banker_classic.invest(bank, n_arms, barrier, learner.investment) for bank in table]
    return float(np.mean(1.0 / np.array(invested)))


def _entropy(weights: Floats) -> float:
    """Entropy of weights after division by their sum, in nats; 0 where there are none."""
    total = weights.sum()
    if not total > 0:
        return 0.0
    p = weights[weights > 0] / total
    return float(-(p * np.log(p)).sum())
