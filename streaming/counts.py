"""What the learners of a process have done, as they count it."""

from dataclasses import dataclass, field

COMMIT_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds of the buckets that commits are timed in."""


@dataclass
class Counts:
    """What the learners of one process have done; they share one."""

    records: int = 0
    events: int = 0
    commits: list[int] = field(default_factory=lambda: [0] * (len(COMMIT_S) + 1))
    """By how long the store took; the last bucket has no bound."""
    commit_s: float = 0.0
    refused: int = 0
    loads: int = 0
    folds: int = 0
    snapshots: int = 0
