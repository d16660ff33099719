"""Are requests answered, fast and from fresh parameters?"""

from deploy.grafana.panels import Dashboard, Panel, quantile, ratio, stored, summed

_COUNT = "croupier_request_seconds_count"
_HOT = 'route=~"/v1/recommend|/v1/feedback"'
_RECOMMEND = 'route=~"/v1/recommend|/v1/recommend/batch"'

_ROWS = {
    "Now": (
        Panel(
            "Requests",
            "All requests of all servers. A fall that your traffic does not explain: look at the balancer, then at "
            "Parts up in Operations.",
            "reqps",
            (("requests", summed("croupier_request_seconds_count", "")),),
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Recommend p99",
            "99 of 100 recommendations were answered within this. Above the bar: add workers, or fewer edges per "
            "request; see Latency of recommend.",
            "s",
            (("p99", quantile(0.99, "croupier_request_seconds", _RECOMMEND)),),
            bar=0.05,
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Server errors",
            "Share of requests answered 5xx. Above the bar: the body's detail says what is away; see Parts up in "
            "Operations.",
            "percentunit",
            (
                (
                    "5xx",
                    ratio(summed(f'{_COUNT}{{outcome="5xx"}}', ""), summed(_COUNT, "")),
                ),
            ),
            bar=0.01,
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Workers alive",
            "Workers that gave a sign of life in the last 3 s, over all servers. Fewer than you start: read the "
            "servers' stderr.",
            "none",
            (("workers", "sum(croupier_workers)"),),
            bar=1,
            low_is_bad=True,
            kind="stat",
            width=6,
            height=4,
        ),
    ),
    "Traffic": (
        Panel(
            "Rate by route",
            "What clients ask for. Feedback far below what your users click: is the client that sends rewards there?",
            "reqps",
            (("{{route}}", summed(_COUNT, "route") + " > 0"),),
        ),
        Panel(
            "Rate by outcome",
            "4xx are the client's (the body names the field), 5xx the server's. 4xx grow after a client's release: "
            "roll it back.",
            "reqps",
            (("{{outcome}}", summed("croupier_request_seconds_count", "outcome")),),
        ),
        Panel(
            "Hot path share",
            "Share of recommendations and feedback that the short way answered. It falls after a client's release: "
            "bodies of an unusual form take the longer way, which costs several times as much; the answers are the "
            "same.",
            "percentunit",
            (
                (
                    "hot path",
                    ratio(summed("croupier_hot_requests_total", ""), summed(f"{_COUNT}{{{_HOT}}}", "")),
                ),
            ),
            max=1,
        ),
        Panel(
            "Decisions by policy and mode",
            "Recommendations by policy. A policy at 0 has no client; unknown are policies deleted since.",
            "ops",
            (
                (
                    "{{policy}} {{mode}}",
                    summed('croupier_decisions_total{policy=~"$policy"}', "policy, mode"),
                ),
            ),
        ),
    ),
    "Latency": (
        Panel(
            "Latency of recommend",
            "Time in the server. p50 grows: more edges per request, or a slower machine. Only p99 grows: the "
            "processors are full; add workers or servers.",
            "s",
            tuple(
                (f"p{100 * q:g}", quantile(q, "croupier_request_seconds", _RECOMMEND)) for q in (0.5, 0.9, 0.99, 0.999)
            ),
            bar=0.05,
        ),
        Panel(
            "Latency of feedback",
            "A 202 waits for the log's disk or brokers. It grows: look at the log's disk or at Kafka.",
            "s",
            tuple(
                (f"p{100 * q:g}", quantile(q, "croupier_request_seconds", 'route="/v1/feedback"'))
                for q in (0.5, 0.9, 0.99)
            ),
            bar=0.25,
        ),
        Panel(
            "Slow requests",
            "Share of recommendations and feedback that took longer than 50 ms. It is right where percentiles are "
            "coarse: use it to compare two releases.",
            "percentunit",
            (
                (
                    "over 50 ms",
                    "1 - "
                    + ratio(
                        summed(f'croupier_request_seconds_bucket{{{_HOT},le="0.05"}}', ""),
                        summed(f"{_COUNT}{{{_HOT}}}", ""),
                    ),
                ),
            ),
            bar=0.01,
        ),
    ),
    "Freshness": (
        Panel(
            "From reward to next choice",
            "From the durable append of a commit's oldest record until every worker's next choice knows it. p99 above "
            "the bar: the learner lags or the machine is full; see Lag in Operations.",
            "s",
            tuple((f"p{100 * q:g}", quantile(q, "croupier_visible_seconds")) for q in (0.5, 0.99)),
            bar=0.1,
        ),
        Panel(
            "Staleness by shard",
            "Age of what choices are made from while more waits; 0 when nothing waits. One shard grows: it is stopped "
            "(see Operations). All grow: learner or store is away.",
            "s",
            (
                (
                    "shard {{shard}}",
                    'max by (shard) (croupier_replica_staleness_seconds{shard=~"$shard"})',
                ),
            ),
            bar=30,
        ),
        Panel(
            "Decisions lost and dropped",
            "Lost: never came to the log, seen by a gap in their numbers (the last moments of a killed worker leave "
            "none). Dropped: the log was away for longer than memory holds. Above 0: mend the log; what was shown is "
            "not learned.",
            "ops",
            (
                ("lost", stored("croupier_decisions_lost_total", "")),
                ("dropped", summed("croupier_decisions_dropped_total", "")),
            ),
            bar=1,
        ),
    ),
}
SERVING = Dashboard(
    "Serving", "Are requests answered, fast, and from fresh parameters? Look here first when clients complain.", _ROWS
)
