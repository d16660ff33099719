"""Export and import: a data folder's whole knowledge as one file, and a new data folder from it.

    manifest.json             what this is, and size and BLAKE2b of every other member
    control                   the records of the control partition, as a MessagePack list of bytes
    blobs/{hash}              the graphs in use
    shards/{n}/{table}.npy    every table of every shard (`streaming.state` lists them), readable by numpy

It is a zip file. It holds the signing keys, so that the ids of open decisions stay good: keep it as you keep the keys.
Outcome: a server that starts on the imported folder serves the same parameters. Its log is a new one and begins with
the control history, and in each shard with the records that the shard had not applied yet; the clock of the log goes
on from where it was.
"""

from dataclasses import dataclass
from pathlib import Path

from streaming.errors import StreamingError
from streaming.folder import Progress, silent
from streaming.log import Clock, wall_clock


class ArchiveError(StreamingError):
    """A file that is no sound export, or that cannot be imported so; the sentence says what to do."""


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote."""

    file: str
    size_bytes: int
    heads: list[int]
    policies: list[str]

    def lines(self) -> list[str]:
        return [
            f"{self.file}: {self.size_bytes:,} bytes, {len(self.heads)} shards, {len(self.policies)} policies "
            f"({', '.join(self.policies) or 'none'})",
            "It holds the signing keys: keep it as you keep those.",
        ]


@dataclass(frozen=True)
class ImportReport:
    """What `import_` made."""

    data: str
    shards: int
    policies: list[str]

    def lines(self) -> list[str]:
        return [
            f"{self.data}: {self.shards} shards, {len(self.policies)} policies ({', '.join(self.policies) or 'none'})",
            f"Start it: croupier serve --data {self.data} --shards {self.shards}",
        ]


def export(data: Path, file: Path, progress: Progress = silent, clock: Clock = wall_clock) -> ExportReport:
    """Writes what the folder at `data` knows to `file`, which must not exist. A server may be running on the folder."""
    raise NotImplementedError


def import_(
    file: Path, data: Path, shards: int | None = None, progress: Progress = silent, clock: Clock = wall_clock
) -> ImportReport:
    """Makes a new data folder at `data` (absent or empty) from an export. `shards` None: as many as it had."""
    raise NotImplementedError
