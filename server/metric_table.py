"""Every metric that croupier's processes show: what it says, and what to do about it. docs/reference/metrics.md is made
from this table, and the families that are shown take their help and labels from it.

>>> "croupier_decisions_total" in METRICS
True
>>> family("croupier_decisions_total").name  # Prometheus counts the suffix as part of the sample's name
'croupier_decisions'
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

Kind = Literal["counter", "gauge", "histogram"]
_FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily
}  # fmt: skip


class Described(NamedTuple):
    """One metric: its labels, what it says, and what to do about it (nothing where that is empty)."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    says: str
    do: str = ""


SERVER = (
    Described("croupier_request_seconds", "histogram", ("route", "outcome"), "Time to answer, by route and outcome.",
        "p99 grows: more workers, or fewer edges per request."),
    Described("croupier_hot_requests_total", "counter", (), "Requests answered by the hot path.",
        "A small share of recommend and feedback: something asks in an unusual way, or the server said at its start "
        "that it fell back."),
    Described("croupier_refusals_total", "counter", ("reason",), "Rewards refused before the log, by reason.",
        "`bad-token`: wrong server or altered ids. `unknown-item`: the client names an item that the decision did not "
        "show."),
    Described("croupier_decisions_total", "counter", ("policy", "mode"), "Decisions answered, by policy and mode.",
        "`unknown` are policies deleted since."),
    Described("croupier_decisions_dropped_total", "counter", (),
        "Decisions dropped because the agent was away for too long.", "Look at the log's disk."),
    Described("croupier_decisions_lost_total", "counter", (),
        "Decisions that never came to the log: gaps in their numbers.",
        "Rare and few; the last `flush_ms` of a worker that was killed leave no gap and are not counted here."),
    Described("croupier_reward_outcomes_total", "counter", ("policy", "outcome"),
        "What became of the rewards in the log.", "See the outcomes in docs/operations.md."),
    Described("croupier_items_shown_total", "counter", ("policy", "mode"),
        "Items shown in decisions that came to the log.",
        "Below the explore share you meant: the callers' `mode`, or the policy's `explore_share`."),
    Described("croupier_items_answered_total", "counter", ("policy", "mode"), "Shown items that got a reward in time.",
        "Falls against items shown: do rewards come back?"),
    Described("croupier_reward_sum", "gauge", ("policy", "mode"),
        "Sum of the answered items' rewards, learned or not; with rewards of 0 and 1, clicks.",
        "Over items shown it is the click rate. `exploit` below `explore` for long: the estimates mislead."),
    Described("croupier_reward_delay_seconds", "histogram", ("policy",),
        "From decision to first reward, late ones included.", "Much of it beyond the policy's window: make it longer."),
    Described("croupier_visible_seconds", "histogram", (),
        "From the durable append of a reward to every worker's next choice.",
        "p99 above 0.1 s: the learner lags, or the machine is full."),
    Described("croupier_learner_lag_records", "gauge", ("shard",), "Log records not learned yet.",
        "Grows without end: one core learns several 100,000 events a second; is the learner alive, is the disk slow?"),
    Described("croupier_learner_lag_seconds", "gauge", (), "Age of the oldest record not learned yet.", "As above."),
    Described("croupier_replica_staleness_seconds", "gauge", ("shard",),
        "Age of the newest applied commit while more waits.", "As above."),
    Described("croupier_replica_reloads_total", "counter", (), "Shards read anew because the change feed did not join.",
        "Rare is harmless; steady means that the agent is starved."),
    Described("croupier_log_bytes", "gauge", (), "Size of the event log.",
        "It is trimmed behind snapshots: `croupier doctor` says what is kept and why."),
    Described("croupier_store_bytes", "gauge", (), "Size of the parameter store.", "As above."),
    Described("croupier_disk_free_bytes", "gauge", (), "Free space where the data folder is.",
        "A full disk refuses rewards: make room before."),
    Described("croupier_disk_bytes", "gauge", (), "Size of the disk where the data folder is."),
    Described("croupier_memory_bytes", "gauge", ("process",), "Private memory of this host's processes, by kind.",
        "Grows for days with the same policies: tell us."),
    Described("croupier_shared_bytes", "gauge", (), "Memory that all processes of the host share: the replica.",
        "About 12 bytes an edge and the items' ids."),
    Described("croupier_answers_kept", "gauge", ("shard",), "Answers remembered until their decisions' windows close.",
        "Grows with windows and rewards; it is memory of the learner."),
    Described("croupier_windows_closed_total", "counter", ("policy",),
        "Decisions whose window has closed and that a Banker's baseline counts (rule reserve).",
        "Stands still while decisions come: log time stands still, or the window is long."),
    Described("croupier_items", "gauge", ("policy",), "Items that may be shown: neither removed nor paused."),
    Described("croupier_banks", "gauge", ("policy",), "Banks, the shared one included.",
        "At `max_segments` + 1 further segments share one bank: raise it, or use fewer segments."),
    Described("croupier_bank_balance", "gauge", ("policy",), "Sum of the banks' V: a Banker's savings.",
        "V grows with noise and delay."),
    Described("croupier_bank_borrowed", "gauge", ("policy",), "Sum of what banks of the classic rule have borrowed.",
        "Grows without end: answers do not come back."),
    Described("croupier_bank_outstanding", "gauge", ("policy",),
        "Sum of what plays that wait for their answer hold (rule classic).", "As above."),
    Described("croupier_bank_learning_rate", "gauge", ("policy",),
        "Effective learning rate, mean over banks: 1 / V, or 1 / sigma of the next play (rule classic).",
        "Falls as noise and delay are met; near 0 the bank hardly moves any more."),
    Described("croupier_arms_entropy", "gauge", ("policy",),
        "Entropy of what is shown, nats: of the banks' chances (mean), or of the plays of a graph's items.",
        "Near 0 early: it has committed; is one arm really that much better?"),
    Described("croupier_distinct_items_shown", "gauge", ("policy",), "Items played at least once.",
        "Far below the catalogue: raise `alpha` or set `fresh: first`."),
    Described("croupier_plays_total", "counter", ("policy",), "Plays that were learned, since the agent started."),
    Described("croupier_fresh_plays_total", "counter", ("policy",),
        "Plays of items that had fewer than 100 plays, since the agent started.",
        "Its share says how new items fare: `fresh_share`, `alpha`."),
    Described("croupier_restarts_total", "counter", ("process",), "Processes started again.",
        "Restarts that go on: read stderr."),
    Described("croupier_workers", "gauge", (), "Workers that are alive.", "Fewer than `workers`: read stderr."),
    Described("croupier_up", "gauge", ("part",),
        "1 where log, store, agent, and the learner where it is this server's, are there; 0 where one is away.",
        "Read stderr; `croupier doctor`."),
)  # fmt: skip

# Also shown by a server whose learner is its own, except the first three.
LEARNER = (
    Described("croupier_learner_up", "gauge", ("part",),
        "1 where log and store are there, 0 while one of the learner's shards waits for it.",
        "Its stderr says what is away."),
    Described("croupier_learner_shards", "gauge", (), "Shards that this process learns.",
        "Summed over all learners less than there are: is a learner running, can it reach the group?"),
    Described("croupier_learner_rebalances_total", "counter", (), "Changes in how shards are shared out.",
        "Steady growth: a learner comes and goes, or its session is too short (`--group-session-s`)."),
    Described("croupier_learner_shards_stopped", "gauge", (), "Shards that it has and cannot learn.",
        "Above 0: alert. Its stderr says which and why: see \"A shard that is stopped\" in docs/operations.md."),
    Described("croupier_learner_behind_records", "gauge", ("shard",),
        "Records between its position and the log's end, as of the last second.",
        "Grows without end: another learner; one shard alone: more shards."),
    Described("croupier_learner_records_total", "counter", (), "Log records learned."),
    Described("croupier_learner_events_total", "counter", (), "Decisions and rewards in them."),
    Described("croupier_learner_commit_seconds", "histogram", (), "Time the store takes for a commit.",
        "p99 above 0.02 s: the store is far away, or full."),
    Described("croupier_learner_refused_commits_total", "counter", (),
        "Commits refused: another learner had the shard.",
        "A few after a rebalance, or after `croupier rebuild`, are what protects you."),
    Described("croupier_learner_loads_total", "counter", (), "Shards loaded from the store.", "As rebalances."),
    Described("croupier_learner_folds_total", "counter", (), "Commit streams folded into a shard's base image."),
    Described("croupier_learner_snapshots_total", "counter", (), "Durable snapshots taken.",
        "Stand still while records come: its stderr."),
)  # fmt: skip

ROUTER = (
    Described("croupier_router_messages_total", "counter", (),
        "Messages read from the rewards topic; those read again count again."),
    Described("croupier_router_accepted_total", "counter", (), "Rewards appended to the event log."),
    Described("croupier_router_refused_total", "counter", ("reason",), "Rewards or messages refused, by reason.",
        "Grows: read the letters; docs/router.md has the reasons."),
    Described("croupier_router_dead_letters_total", "counter", (), "Letters written to the dead-letter topic.",
        "The same number, unless letters are under way."),
    Described("croupier_router_batch_seconds", "histogram", (),
        "From the poll that brought messages until they were durable.",
        "Above 1 s: the brokers are slow, or log or store was away."),
    Described("croupier_router_rebalances_total", "counter", (), "Assignments of partitions to this router.",
        "Steady growth: routers die, or are stopped for longer than their session."),
    Described("croupier_router_lag_messages", "gauge", ("partition",),
        "Messages behind the end of the rewards topic, of the partitions that this router has.",
        "Grows: start another router; give the topic more partitions if each has one already."),
    Described("croupier_router_up", "gauge", ("part",), "1 where log and store are there, 0 while one is away.",
        "Its stderr says why."),
)  # fmt: skip

METRICS = {each.name: each for each in (*SERVER, *LEARNER, *ROUTER)}


def family(name: str, value: float | None = None) -> Any:
    """The metric family of a metric in the table, to add samples to; `value` where it has no labels."""
    about = METRICS[name]
    kind = _FAMILIES[about.kind]
    name = name.removesuffix("_total")
    if value is not None:
        assert not about.labels, name
        return kind(name, about.says, value=value)
    return kind(name, about.says, labels=about.labels)


def buckets(bounds: Sequence[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    """Cumulative buckets, as the text format has them; `counts` has one more, without a bound.

    >>> buckets((0.5, 1.0), [2, 0, 1])
    [('0.5', 2.0), ('1', 2.0), ('+Inf', 3.0)]
    """
    total, found = 0, []
    for bound, count in zip((*(f"{b:g}" for b in bounds), "+Inf"), counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found


def markdown() -> str:
    """docs/reference/metrics.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Metrics"
    yield ""
    yield "This page is what `croupier metrics --markdown` prints; a test compares them. Counters begin at 0 for every"
    yield "label that is known; a label names only what exists, else `unknown`."
    for title, text, table in (
        (
            "A server",
            "Its agent serves them for all workers, at `/metrics` of any of them; counters survive a worker's restart.",
            SERVER,
        ),
        (
            "A learner",
            "`croupier learner` serves them on `--metrics-port`, from 0 when it starts. A server whose learner is its\n"
            "own shows them beside the others, without the first three.",
            LEARNER,
        ),
        ("A router", "`croupier router` serves them on `--metrics-port`, from 0 when it starts.", ROUTER),
    ):  # fmt: skip
        yield from ("", f"## {title}", "", text, "", "| metric | kind | labels | what it says | what to do |")
        yield "|---|---|---|---|---|"
        for each in table:
            labels = ", ".join(f"`{label}`" for label in each.labels)
            yield f"| `{each.name}` | {each.kind} | {labels} | {each.says} | {each.do} |"
