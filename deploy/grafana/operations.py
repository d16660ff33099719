"""Is every part there, and does it keep up?"""

from deploy.grafana.panels import Dashboard, Panel, quantile, summed

_SHARD = 'shard=~"$shard"'

_ROWS = {
    "Parts": (
        Panel(
            "Parts up",
            "1 where a part answers the process that needs it, 0 where it is away. 0: mend that part; nothing is lost "
            "meanwhile, and all catches up by itself.",
            "none",
            (
                ("server: {{part}}", "min by (part) (croupier_up)"),
                ("learner: {{part}}", "min by (part) (croupier_learner_up)"),
                ("router: {{part}}", "min by (part) (croupier_router_up)"),
            ),
            bar=1,
            low_is_bad=True,
            max=1,
        ),
        Panel(
            "Processes scraped",
            "Processes that Prometheus reaches, per job. Fewer than you run: one is down, or its port is closed.",
            "none",
            (("{{job}}", 'sum by (job) (up{job=~"server|learner|router"})'),),
            bar=1,
            low_is_bad=True,
        ),
        Panel(
            "Restarts",
            "Processes that a supervisor started again, in 10 minutes. Goes on: read stderr of that server.",
            "none",
            (("{{process}}", "sum by (process) (increase(croupier_restarts_total[10m]))"),),
            bar=3,
        ),
    ),
    "Learners": (
        Panel(
            "Lag by shard",
            "Log records that the parameters of the hosts do not hold yet. All grow: is a learner alive, is the store "
            "slow? One grows: it is stopped, or it needs to be split.",
            "none",
            (("shard {{shard}}", f"max by (shard) (croupier_learner_lag_records{{{_SHARD}}})"),),
        ),
        Panel(
            "Lag in seconds",
            "Age of the oldest record not learned yet, as the slowest server sees it. Above the bar: another learner, "
            "or look at the store.",
            "s",
            (("oldest", "max(croupier_learner_lag_seconds)"),),
            bar=30,
        ),
        Panel(
            "Behind, as learners see it",
            "Records between a learner's position and the log's end. Near 0 while Lag by shard grows: the change feed "
            "of the servers is slow, not the learner.",
            "none",
            (("shard {{shard}}", f"max by (shard) (croupier_learner_behind_records{{{_SHARD}}})"),),
        ),
        Panel(
            "Records and events learned",
            "What learners take in. 0 while clients ask: see Lag. Events per record fall: the log has many small "
            "records, which costs more.",
            "ops",
            (
                ("records", summed("croupier_learner_records_total", "")),
                ("events", summed("croupier_learner_events_total", "")),
            ),
        ),
        Panel(
            "Commit time",
            "Time the store takes for a commit. p99 above the bar: the store is far away, or full.",
            "s",
            tuple((f"p{100 * q:g}", quantile(q, "croupier_learner_commit_seconds")) for q in (0.5, 0.99)),
            bar=0.02,
        ),
        Panel(
            "Refused commits, loads, rebalances",
            "In 10 minutes. A few after a learner comes or goes protect you. Steady: a learner dies again and again, "
            "or --group-session-s is too short.",
            "none",
            (
                ("refused commits", "sum(increase(croupier_learner_refused_commits_total[10m]))"),
                ("loads", "sum(increase(croupier_learner_loads_total[10m]))"),
                ("rebalances", "sum(increase(croupier_learner_rebalances_total[10m]))"),
            ),
        ),
        Panel(
            "Shards learned",
            "Learned must be the number of shards, stopped must be 0. Stopped: stderr of the learner says why, and "
            "the operations page what to do.",
            "none",
            (
                ("shards", "count(count by (shard) (croupier_learner_lag_records))"),
                ("learned", "sum(croupier_learner_shards)"),
                ("stopped", "sum(croupier_learner_shards_stopped)"),
            ),
        ),
        Panel(
            "Folds and snapshots",
            "In one hour. Snapshots stand still while records come: the log is not trimmed and grows; read the "
            "learner's stderr.",
            "none",
            (
                ("folds", "sum(increase(croupier_learner_folds_total[1h]))"),
                ("snapshots", "sum(increase(croupier_learner_snapshots_total[1h]))"),
            ),
        ),
        Panel(
            "Change-feed gaps",
            "Shards that a server read anew because the feed did not join, in 10 minutes. Steady: the agent is "
            "starved; give the machine more room.",
            "none",
            (("{{instance}}", "sum by (instance) (increase(croupier_replica_reloads_total[10m]))"),),
            bar=20,
        ),
    ),
    "Sizes": (
        Panel(
            "Memory",
            "Private bytes of a process, and what the workers of a host share. Grows without end: a defect; restart "
            "that process and keep its figures. Shared grows with items and edges.",
            "bytes",
            (
                ("{{instance}} {{process}}", "sum by (instance, process) (croupier_memory_bytes)"),
                ("{{instance}} shared", "max by (instance) (croupier_shared_bytes)"),
            ),
        ),
        Panel(
            "Disk free",
            "Free share of the disk that holds a server's data. Below the bar: make room now; what cannot be appended "
            "is answered 503.",
            "percentunit",
            (
                (
                    "{{instance}}",
                    "min by (instance) (croupier_disk_free_bytes) / max by (instance) (croupier_disk_bytes)",
                ),
            ),
            bar=0.1,
            low_is_bad=True,
            max=1,
        ),
        Panel(
            "Log and store",
            "Bytes of the event log and of the parameter store. The log grows without end: snapshots stand still; "
            "croupier doctor says what is kept and why.",
            "bytes",
            (("log", "max(croupier_log_bytes)"), ("store", "max(croupier_store_bytes)")),
        ),
    ),
    "Router": (
        Panel(
            "Messages and rewards",
            "What the router reads and appends. Accepted far below read: see Refused by the router in Feedback.",
            "ops",
            (
                ("messages", summed("croupier_router_messages_total", "")),
                ("accepted", summed("croupier_router_accepted_total", "")),
            ),
        ),
        Panel(
            "Router lag",
            "Messages behind the end of the rewards topic. It grows: start another router; give the topic more "
            "partitions if each has one already.",
            "none",
            (("partition {{partition}}", "max by (partition) (croupier_router_lag_messages)"),),
            bar=10000,
        ),
        Panel(
            "Router batch time and rebalances",
            "From the poll that brought messages until they were durable. Above 1 s: the brokers are slow, or log or "
            "store was away.",
            "s",
            (
                ("p50", quantile(0.5, "croupier_router_batch_seconds")),
                ("p99", quantile(0.99, "croupier_router_batch_seconds")),
            ),
            bar=1,
        ),
        Panel(
            "Router rebalances",
            "Assignments of partitions to a router, in 10 minutes. Steady growth: routers die, or are stopped for "
            "longer than their session.",
            "none",
            (("rebalances", "sum(increase(croupier_router_rebalances_total[10m]))"),),
            bar=6,
        ),
    ),
}
OPERATIONS = Dashboard(
    "Operations",
    "Is every part there, does it keep up, and how long will the disk last? Look here when an alert fires.",
    _ROWS,
)
