"""How long parameters have been behind the log, from looks at the log's ends alone: no record is read for it."""

from collections.abc import Sequence

LOOKS_MAX = 2048


class Lag:
    """Remembers when the end of each shard's partition was seen where, for as long as the replica is behind that.

    >>> lag = Lag(2)
    >>> for now_ms, ends in ((1_000, [5, 0]), (1_200, [5, 7]), (1_400, [9, 7])):
    ...     lag.look(now_ms, ends)
    >>> lag.behind_since([5, 7]), lag.behind_since([9, 7])
    (1400, 0)
    """

    def __init__(self, shards: int) -> None:
        self._looks: list[list[tuple[int, int]]] = [[] for _ in range(shards)]

    def look(self, now_ms: int, ends: Sequence[int]) -> None:
        """`ends` as they are at `now_ms`."""
        for shard, end in enumerate(ends):
            self.look_at(shard, now_ms, end)

    def look_at(self, shard: int, now_ms: int, end: int) -> None:
        """The end of one shard's partition."""
        looks = self._looks[shard]
        if not looks or looks[-1][1] != end:
            looks.append((now_ms, end))
        if len(looks) > LOOKS_MAX:  # nobody has learned for minutes: seconds will do, the oldest stays
            del looks[1:-1:2]

    def behind_since(self, heads: Sequence[int]) -> int:
        """When the oldest record that is not before these heads was there; 0 where there is none."""
        oldest = 0
        for looks, head in zip(self._looks, heads, strict=True):
            while looks and looks[0][1] <= head:
                looks.pop(0)
            if looks:
                oldest = min(oldest or looks[0][0], looks[0][0])
        return oldest
