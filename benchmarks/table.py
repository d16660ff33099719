"""Which figures the report shows, where each stands in the modules' results, and what it has to be.

A bar names a module, a path into the dict that its `run` returns (`*` stands for every key), and what is asked of the
value found there: at most, at least, or exactly so. A figure without a bar has no `op`. `learns` brings its bars along.
All other figures are in the JSON and in each module's own `python -m benchmarks.NAME`.

A path that ends in `median` has its spread in `min` and `max` beside it; `spread` and `beside` name other keys there.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple


class Bar(NamedTuple):
    """What one figure has to be. `scale` and `unit` are for printing."""

    module: str
    what: str
    path: str
    op: str = ""  # "<=", ">=" or "=="
    bar: float = math.nan
    unit: str = ""
    scale: float = 1.0
    spread: str = ""  # "key key" of the lowest and the highest
    beside: str = ""  # "key unit": the figure in other words


BARS = [
    Bar("kernels", "choose, 1,000 edges: times touch-only", "choose/100/ratio", "<=", 1.8, beside="choose_us µs"),
    Bar("kernels", "choose, 5,000 edges: times touch-only", "choose/500/ratio", "<=", 1.6, beside="choose_us µs"),
    Bar("kernels", "choose, 20,000 edges: times touch-only", "choose/2000/ratio", "<=", 1.3, beside="choose_us µs"),
    Bar("kernels", "nearest 10 of 10,000 centroids: times gemv", "nearest/ratio", "<=", 1.15, beside="nearest_us µs"),
    Bar("kernels", "edge updates, 100 a call", "learn/known_100_per_s", ">=", 30e6, "M/s and core", 1e-6),
    Bar(
        "learner", "learner from the SQLite log", "rows/k=9, records per commit=16/events_per_cpu_s", ">=", 300e3, "/s"
    ),
    Bar("films", "MovieLens clicks, over full LinUCB's", "diag_over_linucb", ">=", 0.97),
    Bar(
        "http",
        "recommend, 1,000 edges: of a constant app's rate",
        "recommend/1,000 edges/rate_of_constant/median",
        ">=",
        0.8,
        spread="low high",
    ),
    Bar(
        "http",
        "recommend, 5,000 edges: of a constant app's rate",
        "recommend/5,000 edges/rate_of_constant/median",
        ">=",
        0.45,
        spread="low high",
    ),
    Bar(
        "http",
        "recommend, 1,000 edges: times a pydantic route's rate",
        "recommend/1,000 edges/times_pydantic/median",
        ">=",
        5.0,
        spread="low high",
    ),
    Bar(
        "http",
        "half of saturation, 1,000 edges: p50, times constant's",
        "open/0.5/1,000 edges/p50_of_constant/median",
        "<=",
        1.2,
        spread="low high",
    ),
    Bar(
        "http",
        "half of saturation, 1,000 edges: p99, times constant's",
        "open/0.5/1,000 edges/p99_of_constant/median",
        "<=",
        1.5,
        spread="low high",
    ),
    Bar(
        "http",
        "other routes: CPU, times that without the hot path",
        "other_routes/*/cpu_of_no_hot_path/median",
        "<=",
        1.05,
        spread="low high",
    ),
    Bar(
        "http",
        "recommend, two workers: CPU, times one's",
        "two_workers/cpu_of_one/median",
        "<=",
        1.11,
        spread="low high",
    ),
    Bar("http", "answers that were not 2xx, or lost", "errors", "==", 0),
    Bar("rewards", "durable, 500 a request", "bulk/rewards_per_s/median", ">=", 100e3, "/s", spread="low high"),
    Bar(
        "rewards",
        "durable, 500 a request, per core of the server's CPU",
        "bulk/rewards_per_cpu_s/median",
        ">=",
        100e3,
        "/s",
        spread="low high",
    ),
    Bar("rewards", "durable, one a request", "single/rewards_per_s/median", ">=", 10e3, "/s", spread="low high"),
    Bar("rewards", "each applied exactly once", "*/each_applied_once", "==", 1),
    Bar("router", "JSON rewards routed, per core", "router_per_cpu_s", ">=", 10e3, "/s"),
    Bar("freshness", "acknowledged to visible, p99", "p99_ms", "<=", 100, "ms"),
    Bar("redis", "commit of 100 cells: times a GET of 100 bytes", "*/commit_100_cells_over_get", "<=", 4.0),
    Bar("redis", "commit of 1,000 cells: times a GET of 100 bytes", "*/commit_1000_cells_over_get", "<=", 7.0),
    Bar("redis", "Redis's memory per edge, b and d", "*/bytes_per_edge", "<=", 20.0, "B"),
    Bar("scale", "learned from Kafka, per core", "rows/*/learn/events_per_cpu_s", ">=", 100e3, "/s"),
    Bar("scale", "acknowledged to visible on both servers, 20k/s, p99", "rows/*/visible/p99_ms", "<=", 100, "ms"),
    Bar(
        "startup",
        "exec to first recommendation",
        "first_recommendation_s",
        "<=",
        1.0,
        "s",
        spread="fastest_s slowest_s",
    ),
    Bar(
        "http",
        "a request with 10 million edges in total: CPU, times 10,000",
        "sizes/cpu_of_few/median",
        "<=",
        1.5,
        spread="low high",
    ),
    Bar("memory", "shared files, 10 million edges, an edge", "shared_bytes_per_edge", "<=", 12.5, "B"),
    Bar("memory", "a second worker's memory, an edge", "further_worker_from_1_bytes_per_edge", "<=", 0.5, "B"),
]

FIGURES = [
    Bar("growth", "a decision in process at 10 million edges, times at 10,000", "edges_ratio"),
    Bar(
        "http",
        "two workers, agent and learner stopped: CPU, times one's",
        "two_workers/cpu_of_one_alone/median",
        spread="low high",
    ),
    Bar(
        "http",
        "constant app, two workers: CPU, times one's",
        "two_workers/constant_cpu_of_one/median",
        spread="low high",
    ),
    Bar("kernels", "choose through Serving, 1,000 edges: times touch-only", "choose/100/serving_ratio"),
    Bar("kernels", "edge updates with search, as the learner does", "learn/searched_per_s", unit="M/s", scale=1e-6),
    Bar(
        "log_store",
        "append of 1 row: times write and fdatasync",
        "append_1_of_write_and_fdatasync",
        beside="append_1_rows_per_s rows/s",
    ),
    Bar(
        "log_store",
        "append of 100 rows: times write and fdatasync",
        "append_100_of_write_and_fdatasync",
        beside="append_100_rows_per_s rows/s",
    ),
    Bar("log_store", "commit of 2.4 kB", "commit_p50_us", unit="µs"),
    Bar("log_store", "load of a million edges", "load_1m_edges_ms", unit="ms"),
    Bar("scale", "CPU of one event: times 1 shard's", "ratios/*/cpu_per_event"),
]
"""Reported without being judged."""


class Row(NamedTuple):
    """A figure beside its bar; `value` is NaN where the module did not give it, and then nothing holds."""

    module: str
    what: str
    value: float
    unit: str
    op: str
    bar: float  # NaN: none
    holds: bool
    scale: float = 1.0
    low: float = math.nan
    high: float = math.nan
    beside: str = ""

    @property
    def judged(self) -> bool:
        return not math.isnan(self.bar)

    @property
    def margin(self) -> float:
        """How many times better than its bar: below 1 it is missed. NaN without a value.

        >>> Row("kernels", "choose", 1.0, "", "<=", 2.0, True).margin
        2.0
        >>> Row("learns", "its own bar: at least", 0.25, "", "", 0.5, False).margin
        0.5
        """
        if self.op == "==":
            return 1.0 if self.holds else math.nan
        at_most = self.op == "<=" if self.op else (self.value <= self.bar) == self.holds
        over, under = (self.bar, self.value) if at_most else (self.value, self.bar)
        return over / under if under else math.inf

    def number(self, value: float) -> str:
        return short(value * self.scale)

    @property
    def spread(self) -> str:
        """As "low to high", nothing where there is none."""
        return "" if math.isnan(self.low) else f"{self.number(self.low)} to {self.number(self.high)}"

    @property
    def asked(self) -> str:
        return f"{self.op} {self.number(self.bar)}".strip() if self.judged else ""

    @property
    def verdict(self) -> str:
        return "" if not self.judged else "holds" if self.holds else "MISSED"

    def text(self) -> str:
        return (
            f"  {self.module:<10} {self.what:<64} {self.number(self.value):>10} {self.unit:<13}"
            f" {self.asked:<11} {self.verdict:<6} {self.spread}"
        ).rstrip()


def short(value: float) -> str:
    """
    >>> short(0.98765), short(12345.6), short(math.nan)
    ('0.988', '12,346', 'missing')
    """
    return "missing" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"


def signs(text: str) -> str:
    """
    >>> signs("<= 2")
    '≤ 2'
    """
    return text.replace("<=", "≤").replace(">=", "≥").replace("==", "=")


def measured(bar: Bar, where: str, value: float, siblings: dict[str, Any]) -> Row:
    """The row of a bar and what was found; NaN compares false with everything.

    >>> measured(Bar("startup", "start", "s", "<=", 1.5), "", 1.2, {}).holds
    True
    """
    holds = {"<=": value <= bar.bar, ">=": value >= bar.bar, "==": value == bar.bar, "": True}[bar.op]
    what = f"{bar.what} ({where})" if where else bar.what
    spread = bar.spread or ("min max" if bar.path.endswith("/median") else "")
    low, high = (float(siblings.get(key, math.nan)) for key in spread.split()) if spread else (math.nan, math.nan)
    key, _, unit = bar.beside.partition(" ")
    beside = f"{short(siblings[key])} {unit}" if key in siblings else ""
    return Row(bar.module, what, value, bar.unit, bar.op, bar.bar, holds, bar.scale, low, high, beside)


def found(result: Any, path: str) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """(what `*` stood for, value, the dict it stands in) of every place a path leads to.

    >>> list(found({"a": {"x": {"p": 1}, "y": {"p": 2}}}, "a/*/p"))
    [('x', 1.0, {'p': 1}), ('y', 2.0, {'p': 2})]
    >>> list(found({}, "a/p"))
    []
    """
    head, _, rest = path.partition("/")
    if not isinstance(result, dict):
        return
    for key in list(result) if head == "*" else [head]:
        if key not in result:
            continue
        star = str(key) if head == "*" else ""
        if rest:
            for more, value, siblings in found(result[key], rest):
                yield f"{star} {more}".strip(), value, siblings
        elif isinstance(result[key], int | float):
            yield star, float(result[key]), result


def rows(results: dict[str, Any]) -> list[Row]:
    """Every bar and figure of the modules that were run; nothing of one that failed or was skipped.

    A module whose bars depend on one another's figures judges by itself and returns them as a list `bars`, each with
    bar, measured, limit and holds.
    """
    out = []
    for module, result in results.items():
        if reason(result):
            continue
        for bar in BARS + FIGURES:
            if bar.module == module:
                places = list(found(result, bar.path)) or ([("", math.nan, {})] if bar.op else [])
                out += [measured(bar, *place) for place in places]
        for own in result.get("bars", []):
            out.append(Row(module, own["bar"], own["measured"], "", "", own["limit"], own["holds"]))
    return out


def reason(result: dict[str, Any]) -> str:
    """Why a benchmark has no figures; empty when it has.

    >>> reason({"skipped": "no data"}), reason({"run": {"failed": "exit status 1"}}), reason({"p99_ms": 3})
    ('no data', 'exit status 1', '')
    """
    return str(result.get("skipped") or result.get("run", {}).get("failed") or "")


def figures(result: Any, prefix: str = "") -> Iterator[str]:
    """All numbers of a result, a line each, named by their path."""
    items = result.items() if isinstance(result, dict) else enumerate(result) if isinstance(result, list) else []
    for key, value in items:
        if key in ("plots", "text", "run"):
            continue
        name = f"{prefix}{key}"
        if isinstance(value, dict | list):
            yield from figures(value, f"{name} / ")
        else:
            shown = f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else value
            shown = f"{shown:,.0f}" if isinstance(shown, float) else shown
            yield f"  {name:<70} {shown}"
