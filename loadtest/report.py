"""The report of a run of simulated users: click rates, freshness, and both sides' books. As text and as JSON."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from loadtest.ledger import Ledger, Line, Tenth, compare
from loadtest.probe import Freshness

HOW_FRESH = (
    "measured from outside: a probe policy's reward is acknowledged (202), then every connection asks for the same\n"
    "  user until the score has moved; the slowest connection counts, its last answer's way and 2 ms polls included"
)


@dataclass(frozen=True)
class Report:
    """Everything a run found. `ledgers` by policy; `before` and `after` are the server's outcome counters."""

    ledgers: dict[str, Ledger]
    seconds: float
    freshness: Freshness | None = None
    probe_ledger: Ledger | None = None
    before: Counter[str] | None = None
    after: Counter[str] | None = None

    @property
    def total(self) -> Ledger:
        """All users' counts, the probe's included."""
        ledger = Ledger()
        for each in (*self.ledgers.values(), *([self.probe_ledger] if self.probe_ledger else [])):
            ledger.add(each)
        return ledger

    @property
    def books(self) -> list[Line]:
        """Outcomes on both sides; empty when the server's counters were not to be had."""
        if self.before is None or self.after is None:
            return []
        return compare(self.total, self.before, self.after)

    @property
    def balanced(self) -> bool:
        """Whether every outcome's count agrees; False without the server's counters."""
        return bool(self.books) and all(line.agrees for line in self.books)

    def to_dict(self) -> dict[str, Any]:
        total = self.total
        return {
            "seconds": round(self.seconds, 1),
            "policies": {
                name: {
                    "decisions": ledger.decisions,
                    "overall": rates_dict(ledger.rates()),
                    "tenths": [rates_dict(tenth) for tenth in ledger.tenths()],
                }
                for name, ledger in self.ledgers.items()
            },
            "freshness": None if self.freshness is None else self.freshness.to_dict(),
            "statuses": {f"{route} {status}": n for (route, status), n in sorted(total.statuses.items())},
            "lost": dict(total.lost),
            "unreachable": dict(total.unreachable),
            "retries": dict(total.retries),
            "gave_up": dict(total.gave_up),
            "verdicts": {" ".join(v).strip(): n for v, n in sorted(total.verdicts.items())},
            "sends": dict(total.sends),
            "unsent": total.unsent,
            "never_answered": total.never_answered,
            "unknown_items": total.unknown_items,
            "outcomes": [line._asdict() | {"agrees": line.agrees} for line in self.books],
            "balanced": self.balanced,
        }

    def text(self) -> str:
        parts = [click_rates(name, ledger, self.seconds) for name, ledger in self.ledgers.items()]
        return "\n\n".join([*parts, self._freshness(), self._answers(), self._outcomes()]) + "\n"

    def _freshness(self) -> str:
        if self.freshness is None:
            return "FRESHNESS  not measured"
        d = self.freshness.to_dict()
        figures = "  ".join(f"{q} {ms:.1f}" for q, ms in d["acknowledged_to_visible_ms"].items()) or "no figure"
        return (
            f"FRESHNESS  reward acknowledged -> visible, ms: {figures}\n"
            f"  {d['measurements']} measurements; {d['never_seen']} never seen, {d['failed']} failed\n  {HOW_FRESH}"
        )

    def _answers(self) -> str:
        total = self.total
        rows = [f"  {route:<10} {status}  {n:>10,}" for (route, status), n in sorted(total.statuses.items())]
        for what, counts in (
            ("no answer", total.lost),
            ("not reached", total.unreachable),
            ("sent again", total.retries),
            ("given up", total.gave_up),
        ):
            rows += [f"  {route:<10} {what:<12} {n:>2,}" for route, n in sorted(counts.items()) if n]
        return "ANSWERS\n" + "\n".join(rows or ["  none"])

    def _outcomes(self) -> str:
        total = self.total
        verdicts = ", ".join(f"{' '.join(v).strip()} {n:,}" for v, n in sorted(total.verdicts.items())) or "none"
        sends = ", ".join(f"{kind} {n:,}" for kind, n in sorted(total.sends.items())) or "none"
        head = (
            f"REWARDS  sent: {sends}; not sent before the end {total.unsent:,}; "
            f"never answered {total.never_answered:,}\n  verdicts: {verdicts}"
        )
        if not self.books:
            return head + "\n  the server's counters (/metrics) were not to be had: nothing compared"
        rows = [f"  {'outcome':<12} {'users expect':>17} {'server counts':>14}"]
        for line in self.books:
            wanted = f"{line.low:,}" if line.low == line.high else f"{line.low:,} to {line.high:,}"
            rows.append(
                f"  {line.outcome:<12} {wanted:>17} {line.server:>14,}   {'agrees' if line.agrees else 'DIFFERS'}"
            )
        return "\n".join([head, *rows])


def rates_dict(rates: Tenth) -> dict[str, Any]:
    return {name: None if math.isnan(value) else value for name, value in rates._asdict().items()}


def click_rates(name: str, ledger: Ledger, seconds: float) -> str:
    """The click rate's table of one policy: overall and by tenth of the run."""
    overall = ledger.rates()
    if not overall.shown:
        return f"CLICK RATE  {name}: nothing was shown"
    head = (
        f"CLICK RATE  {name}: {overall.clicked:.2%} of {overall.shown:,} items shown in {ledger.decisions:,} decisions "
        f"({ledger.decisions / seconds:,.0f}/s)\n"
        f"  random {overall.random:.2%}, best possible {overall.best:.2%}: {times(overall):.2f} times random, "
        f"{captured(overall):.0%} of the way to the best (both of the same visitors, by their true rates)"
    )
    rows = [f"  {'tenth':>5} {'shown':>9} {'clicked':>8} {'expected':>9} {'random':>8} {'best':>8} {'x random':>9}"]
    for i, t in enumerate(ledger.tenths(), 1):
        if t.shown:
            rows.append(
                f"  {i:>5} {t.shown:>9,} {t.clicked:>8.2%} {t.expected:>9.2%} {t.random:>8.2%} {t.best:>8.2%} "
                f"{times(t):>9.2f}"
            )
    return "\n".join([head, *rows])


def times(rates: Tenth) -> float:
    """How many times a random choice's click rate this is."""
    return rates.clicked / rates.random if rates.random else math.nan


def captured(rates: Tenth) -> float:
    """The share of the way from random to the best possible."""
    room = rates.best - rates.random
    return (rates.clicked - rates.random) / room if room > 0 else math.nan
