"""The figures of the live page, as one event of `GET /v1/live` carries them; `server.live` gathers them."""

import msgspec

from server.schemas import Arm


class Quantiles(msgspec.Struct, frozen=True):
    """Upper bounds of the last minute's median and 99th percentile, ms; null where there is none."""

    p50: float | None
    p99: float | None


class PolicyLine(msgspec.Struct, frozen=True):
    """One policy in the list. `shown` and `rewards` are all there ever were."""

    name: str
    algorithm: str
    items: int
    shown: int
    rewards: int


class PolicyView(msgspec.Struct, frozen=True):
    """The policy that is looked at."""

    name: str
    algorithm: str
    mode: str | None
    """diag-linucb: the mode of a request that names none; null for K-armed policies, which explore."""
    window_s: float
    default: float | None
    dim: int
    clusters: int
    segment: str
    segments: list[str]
    outcomes: dict[str, int]
    history: list[list[float]]
    arms: list[Arm]
    arms_total: int


class Live(msgspec.Struct, frozen=True):
    """One event of the stream."""

    time_ms: int
    version: str
    uptime_s: float
    modes: tuple[str, ...]
    parts: dict[str, bool]
    workers: int
    restarts: int
    shards: int
    lag_records: int
    lag_s: float
    visible_ms: Quantiles
    recommend_ms: Quantiles
    requests: int
    refused: int
    log_bytes: int
    store_bytes: int
    policies: list[PolicyLine]
    policy: PolicyView | None
