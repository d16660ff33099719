"""The figures of the live page, as one event of `GET /v1/live` carries them; `server.live` gathers them."""

from typing import Annotated

import msgspec
from msgspec import Meta

from server.schemas import Arm


class Quantiles(msgspec.Struct, frozen=True):
    """Upper bounds of the last minute's median and 99th percentile, ms; null where nothing happened."""

    p50: Annotated[float | None, Meta(description="Median, ms.", examples=[1.0])]
    p99: Annotated[float | None, Meta(description="99th percentile, ms.", examples=[10.0])]


class PolicyLine(msgspec.Struct, frozen=True):
    """One policy in the list. `shown` and `rewards` are all there ever were."""

    name: Annotated[str, Meta(description="Its name.", examples=["headlines"])]
    algorithm: Annotated[str, Meta(description="Its algorithm.", examples=["banker"])]
    items: Annotated[int, Meta(description="Items it has.", examples=[3])]
    shown: Annotated[int, Meta(description="Items shown.", examples=[1200])]
    rewards: Annotated[int, Meta(description="Rewards that have an outcome.", examples=[130])]


class PolicyView(msgspec.Struct, frozen=True):
    """The policy that is looked at."""

    name: Annotated[str, Meta(description="Its name.", examples=["headlines"])]
    algorithm: Annotated[str, Meta(description="Its algorithm.", examples=["banker"])]
    mode: Annotated[
        str,
        Meta(description="The mode of a request that names none.", examples=["explore"]),
    ]
    window_s: Annotated[float, Meta(description="Rewards count so long after the decision, s.", examples=[1800.0])]
    default: Annotated[float | None, Meta(description="What no answer means; null: nothing.", examples=[0.0])]
    dim: Annotated[int, Meta(description="Length of a user embedding; 0: none.", examples=[0])]
    clusters: Annotated[int, Meta(description="User clusters of its graph; 0: none.", examples=[0])]
    segment: Annotated[str, Meta(description="Whose bank `arms` are from.", examples=["all"])]
    segments: Annotated[list[str], Meta(description="Segments with a bank, at most 50.", examples=[["all", "new"]])]
    outcomes: Annotated[dict[str, int], Meta(description="Rewards by outcome.", examples=[{"applied": 130}])]
    history: Annotated[
        list[list[float]],
        Meta(
            description="One row every 2 s: time in ms since the epoch; items shown in each of `modes`; the sum of "
            "rewards in each of them; decisions and rewards counted. All are totals: subtract two rows.",
            examples=[[[1763800000000.0, 1100.0, 100.0, 0.0, 110.0, 20.0, 0.0, 400.0, 130.0]]],
        ),
    ]
    arms: Annotated[list[Arm], Meta(description="The 50 arms with the most plays.")]
    arms_total: Annotated[int, Meta(description="Arms there are.", examples=[3])]


class Live(msgspec.Struct, frozen=True):
    """One event of the stream."""

    time_ms: Annotated[int, Meta(description="Time of the event, ms since the epoch.", examples=[1763800000000])]
    version: Annotated[str, Meta(description="croupier's version.", examples=["1.0.0"])]
    uptime_s: Annotated[float, Meta(description="Since the agent started, s.", examples=[3600.0])]
    modes: Annotated[
        tuple[str, ...],
        Meta(description="The modes, in the order of `history`.", examples=[["explore", "exploit", "thompson"]]),
    ]
    parts: Annotated[
        dict[str, bool],
        Meta(
            description="Whether each part is there; no learner where it runs on other machines.",
            examples=[{"log": True, "store": True, "agent": True, "learner": True}],
        ),
    ]
    workers: Annotated[int, Meta(description="Workers that are alive.", examples=[1])]
    restarts: Annotated[int, Meta(description="Processes that were started again.", examples=[0])]
    shards: Annotated[int, Meta(description="Shards there are.", examples=[4])]
    lag_records: Annotated[int, Meta(description="Records of the log that wait to be learned.", examples=[0])]
    lag_s: Annotated[float, Meta(description="How old the parameters are, s; 0: nothing waits.", examples=[0.0])]
    visible_ms: Annotated[Quantiles, Meta(description="From a reward in the log to the next choice that knows it.")]
    recommend_ms: Annotated[Quantiles, Meta(description="To answer a recommendation or a reward.")]
    requests: Annotated[int, Meta(description="Recommendations and feedback calls answered.", examples=[2400])]
    refused: Annotated[int, Meta(description="Rewards refused before the log.", examples=[0])]
    log_bytes: Annotated[int, Meta(description="Size of the event log.", examples=[1048576])]
    store_bytes: Annotated[int, Meta(description="Size of the parameter store.", examples=[1048576])]
    policies: Annotated[list[PolicyLine], Meta(description="All policies.")]
    policy: Annotated[PolicyView | None, Meta(description="The one that is looked at; null: there is none.")]
