"""What can go wrong with the event log and the parameter store, by what the caller should do about it.

| error | meaning | the caller |
|---|---|---|
| `LogUnavailable`, `StoreUnavailable` | disk full, locked, no permission, I/O; nothing half-done | tries again later |
| `LogCorrupt`, `StoreCorrupt` | not our file, or a damaged one | stops, shows the sentence |
| `LogInUse` | another process writes this log | stops, or tries again later |
| `LayoutMismatch` | a sound file, made for another number of shards or another log | stops, shows the sentence |
| `Trimmed` | the offset is no longer kept | loads a snapshot or stops |
| `StaleCommit` | somebody else committed to this shard | drops its state and loads |
| `NotFound` | no blob or snapshot of that name | depends |

Every message names the file and the remedy.
"""


class StreamingError(Exception):
    """The base of all errors of the event log and the parameter store."""


class LogUnavailable(StreamingError):
    """The log cannot be used now. Nothing was half-done; the same call may succeed later."""


class LogInUse(LogUnavailable):
    """Another handle holds the log for writing; a log has one writer."""


class LogCorrupt(StreamingError):
    """The log is damaged or not a log of croupier. Trying again does not help."""


class Trimmed(StreamingError):
    """The offset asked for lies before the first that is kept.

    >>> Trimmed(0, 5, 9).start
    9
    """

    def __init__(self, partition: int, offset: int, start: int) -> None:
        super().__init__(
            f"partition {partition} of the log starts at offset {start}; {offset} was trimmed: "
            "load the newest snapshot, whose head is at or after the start"
        )
        self.partition = partition
        self.offset = offset
        self.start = start


class StoreUnavailable(StreamingError):
    """The store cannot be used now. Nothing was half-done; the same call may succeed later."""


class StoreCorrupt(StreamingError):
    """The store is damaged or not a store of croupier. Trying again does not help."""


class StaleCommit(StreamingError):
    """The commit or fold does not follow the shard's last one: who holds this state is a zombie and loads anew."""

    def __init__(self, shard: int, expected: bytes, last: bytes) -> None:
        super().__init__(
            f"shard {shard}: this follows commit {expected.hex()}, but the store's last is {last.hex()}: "
            "another learner has committed; load the shard again"
        )
        self.shard = shard
        self.expected = expected
        self.last = last


class LayoutMismatch(StreamingError):
    """The file is sound but was made with another number of shards, or for another log."""


class NotFound(StreamingError):
    """The store holds no blob or snapshot of this name."""
