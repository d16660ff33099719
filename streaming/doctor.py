"""Doctor: looks at a place and says what is there, what is kept and why, and what is wrong and what to do.

It never writes, and servers and learners may be running on the place.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from streaming.contract import COLUMNS, POISONED
from streaming.control import ControlState, label_of, snapshot_label
from streaming.errors import LogUnavailable, NotFound, StreamingError
from streaming.log import Clock, wall_clock
from streaming.place import (
    LOG_FILE,
    STORE_FILE,
    OpenPlace,
    Place,
    Progress,
    control_after,
    control_history,
    control_of,
    open_place,
    silent,
    state_of,
)
from streaming.state import State
from streaming.store import SnapshotInfo

FREE_BYTES = 256 << 20
"""A disk with less room than this is a problem: one large fold, or one burst of rewards, fills it."""
STUCK_MS = 60_000
LETTERS_SHOWN = 5


@dataclass
class DoctorReport:
    """Facts, one line each, and problems, one sentence each with its remedy."""

    name: str
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def lines(self) -> list[str]:
        n = len(self.problems)
        verdict = f"{self.name} is in order." if self.ok else f"{n} problem{'s' * (n > 1)}:"
        return [*self.facts, verdict, *(f"- {problem}" for problem in self.problems)]


def doctor(place: Place, progress: Progress = silent, clock: Clock = wall_clock) -> DoctorReport:
    """Examines a place. What is wrong with it is reported, not raised."""
    report = DoctorReport(place.name)
    if place.folder is not None and not _files(place.folder, report, progress):
        return report
    try:
        with open_place(place, clock) as opened:
            _place(opened, report, progress, clock())
    except (StreamingError, OSError) as error:
        report.problems.append(str(error))
    return report


def _files(data: Path, report: DoctorReport, progress: Progress) -> bool:
    """Whether the files of a data folder are there and sound."""
    if not data.is_dir():
        report.problems.append(f"there is no data folder at {data}: `croupier serve --data {data}` makes one")
        return False
    free = shutil.disk_usage(data).free
    report.facts.append(f"{data}: {_size(free)} free on its disk")
    if free < FREE_BYTES:
        report.problems.append(
            f"the disk of {data} has only {_size(free)} left: free some; when it is full, feedback is refused with 503"
        )
    sound = True
    for name, noun in ((LOG_FILE, "event log"), (STORE_FILE, "parameter store")):
        progress(f"checking {name}", 0, 1)
        sound = _file(data / name, noun, report) and sound
        progress(f"checking {name}", 1, 1)
    return sound


def _file(path: Path, noun: str, report: DoctorReport) -> bool:
    """Whether the file is there and sound by SQLite's own check of its structure."""
    if not path.exists():
        report.problems.append(
            f"there is no {noun} at {path}: restore log and store together from one backup, or start the server on an "
            "empty folder"
        )
        return False
    sound = ["it cannot be read"]
    try:
        con = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
        try:
            sound = [row[0] for row in con.execute("PRAGMA quick_check(3)")]
        finally:
            con.close()
    except sqlite3.Error as error:
        sound = [str(error)]
    if sound != ["ok"]:
        report.problems.append(
            f"the {noun} {path} is damaged ({'; '.join(sound)}): restore log and store together from one backup, or "
            "move the data folder away to start anew"
        )
    return sound == ["ok"]


def _place(opened: OpenPlace, report: DoctorReport, progress: Progress, now_ms: int) -> None:
    log, store = opened.log, opened.store
    report.facts.append(
        f"log {log.id}, {_size(log.size_bytes())}; store {opened.manifest.id}, {_size(store.size_bytes())}; "
        f"they belong together; {log.shards} shards"
    )
    newest = _control(opened, report)
    for shard in range(log.shards):
        try:
            _shard(opened, shard, newest, report, now_ms)
        except StreamingError as error:
            report.problems.append(f"shard {shard}: {error}")
        progress("shards", shard + 1, log.shards)


def _control(opened: OpenPlace, report: DoctorReport) -> int:
    """The number of the newest control record; reports which of them changed nothing, and why."""
    history = control_history(opened.log)
    state, ignored = control_after(history)
    report.facts.append(
        f"control: {state.applied:,} records, {len(state.policies)} policies "
        f"({', '.join(sorted(state.policies)) or 'none'}), {len(state.keys)} signing keys"
        + (f"; {len(history) - state.applied:,} more that lost a race" if len(history) > state.applied else "")
        + (f"; without effect: {', '.join(ignored)}" if ignored else "")
    )
    return state.applied


def _shard(opened: OpenPlace, shard: int, newest: int, report: DoctorReport, now_ms: int) -> None:
    snapshots = opened.store.snapshots(shard)
    unlabelled = [snapshot for snapshot in snapshots if not snapshot.label]
    image = opened.store.load(shard)
    state, (_, head) = state_of(image), image.last
    start, end = opened.log.bounds(shard)
    control = control_of(state)
    report.facts += [
        f"shard {shard}: log keeps offsets {start:,} to {end:,}, parameters include it up to {head:,}; "
        + _lag(opened, shard, head, end, now_ms, report),
        f"  kept: {_kept(unlabelled, start)}",
        *_labelled(snapshots, control),
        f"  {_size(sum(state[name].nbytes for name in state.tables))} in {len(state.tables)} tables, "
        f"{len(image.deltas):,} commits since the base; {_tables(state)}",
        *_letters(state),
    ]
    report.problems += [
        f"shard {shard}: {problem}" for problem in _positions(opened.place, unlabelled, start, head, end)
    ]
    if head == end and control.applied < newest:
        report.problems.append(
            f"shard {shard}: control record {control.applied + 1} of {newest} has not reached it: start the server, "
            "which sends it again"
        )
    for snapshot in snapshots:
        opened.store.load_snapshot(snapshot.name)  # raises where a part has a wrong checksum
    for policy in control.policies.values():
        try:
            if policy.graph is not None:
                opened.store.get_blob(policy.graph.blob)
        except NotFound:
            report.problems.append(
                f"shard {shard}: the graph of policy {policy.name!r} is missing in the store: upload the graph again"
            )


def _labelled(snapshots: list[SnapshotInfo], control: ControlState) -> list[str]:
    kept = [
        f"{label_of(each.label)[0]} (offset {each.head:,}, {_size(each.size_bytes)})"
        for each in snapshots
        if each.label
    ]
    there = {each.label for each in snapshots}
    kept += [f"{label} (not made yet)" for label, n in control.labels.items() if snapshot_label(label, n) not in there]
    return [f"  labelled snapshots, kept until they are deleted: {', '.join(kept)}"] if kept else []


def _lag(opened: OpenPlace, shard: int, head: int, end: int, now_ms: int, report: DoctorReport) -> str:
    try:
        waiting = opened.log.read(shard, head, 1) if head < end else []
    except LogUnavailable:
        waiting = []
    if not waiting:
        return "no lag"
    waited_ms = max(0, now_ms - waiting[0].time_ms)
    if waited_ms > STUCK_MS:
        embedded = opened.place.folder is not None
        starter = "the server" if embedded else f"`croupier learner {opened.place.options}`"
        remedy = f"start {starter}; if it is running, its learner has stopped, and its messages say why"
        report.problems.append(
            f"shard {shard}: {end - head:,} records have waited {waited_ms / 1000:,.0f} s to be learned: " + remedy
        )
    return f"lag {end - head:,} records, the oldest waiting {waited_ms / 1000:,.3f} s"


def _kept(snapshots: list[SnapshotInfo], start: int) -> str:
    if not snapshots:
        return "the whole log, since there is no snapshot yet (the log is trimmed only behind the oldest kept snapshot)"
    oldest, newest = snapshots[0], snapshots[-1]
    size = sum(snapshot.size_bytes for snapshot in snapshots)
    text = (
        f"{len(snapshots)} snapshots ({_size(size)}), the oldest at offset {oldest.head:,}, the newest at "
        f"{newest.head:,}; the log from the oldest on, since it is trimmed only behind that"
    )
    if start < oldest.head:
        text += f" (offsets {start:,} to {oldest.head:,} go with the next trim)"
    return text


def _tables(state: State) -> str:
    answered = [name for name in state.tables if name.startswith("answered/")]
    answers = sum(len(state[name]) for name in answered)
    streams = len(state["streams"]) if "streams" in state else 0
    counted = [f"{column} {n:,}" for column, n in zip(COLUMNS, _outcomes(state), strict=True) if n]
    events = ", ".join(counted) or "no events yet"
    return f"answered-set {answers:,} in {len(answered)} minutes, {streams} streams; {events}"


def _outcomes(state: State) -> list[int]:
    totals = [0] * len(COLUMNS)
    for name in state.tables:
        if name.startswith("outcomes/"):
            totals = [a + b for a, b in zip(totals, state[name][0].tolist(), strict=True)]
    return totals


def _letters(state: State) -> list[str]:
    if "outcomes/0" not in state or "dead_letters" not in state:
        return []
    poisoned = int(state["outcomes/0"][0, POISONED])
    ring = state["dead_letters"].tolist()
    if not poisoned or not ring:
        return []
    last = [ring[(poisoned - 1 - i) % len(ring)] for i in range(min(LETTERS_SHOWN, len(ring)))]
    shown = ", ".join(f"({offset}, {index})" for offset, index in last if offset >= 0)
    return [f"  dead letters: {poisoned:,}; the newest (offset, index): {shown or 'of another log'}"]


def _positions(place: Place, snapshots: list[SnapshotInfo], start: int, head: int, end: int) -> Iterator[str]:
    backup = place.together
    if head > end:
        yield (
            f"the parameters include the log up to offset {head:,}, but the log ends at {end:,}: it was shortened or "
            f"replaced; {backup}"
        )
    if head < start:
        yield f"the parameters end at offset {head:,}, but the log starts at {start:,}: the rest is lost; {backup}"
    if snapshots and start > snapshots[0].head:
        yield (
            f"the log starts at offset {start:,}, after the oldest snapshot ({snapshots[0].head:,}): that snapshot "
            "cannot be replayed; the next snapshots replace it"
        )


def _size(size: int) -> str:
    """Bytes for people.

    >>> _size(5 << 20)
    '5.0 MiB'
    """
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:,.1f} {units[0]}" if units[0] != "bytes" else f"{size} bytes"
