"""Export and import: a place's whole knowledge as one file, and a new place from it, of either kind.

    manifest.json             what this is, and size and BLAKE2b of every other member
    control                   the records of the control partition, as a MessagePack list of bytes
    blobs/{hash}              the graphs in use
    shards/{n}/{table}.npy    every table of every shard (`streaming.state` lists them), readable by numpy

It is a zip file. It holds the signing keys, so that the ids of open decisions stay good: keep it as you keep the keys.

What is imported serves the same parameters, in a data folder or on many machines, whichever it was exported from. The
new place's log is a new one. Its control partition holds the whole control history, so numbers go on where they were;
each shard's begins with an empty frame, and with the control records which that shard had not applied yet; both are
learned at once. Each shard's parameters stand as a snapshot at offset 0, from which `replay` starts. Snapshots with a
label are not exported, so the control history ends with records that delete them.

A folder is made beside its final name and renamed: there is all of it or nothing. Where the parts are servers, the
order of writing tells (`streaming.place.half_import` looks):

    manifest -> each shard's tables as of offset 0 -> blobs -> control partition -> shards' partitions

so from the first table to the last step some shard has parameters beside an empty partition, and everyone refuses the
place. What is cut off before the first table is an empty place.
"""

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from streaming import events, reshard
from streaming.control import GraphPut, Restore, SnapshotDrop, from_json, to_json
from streaming.errors import LayoutMismatch, StreamingError
from streaming.learner import Learner, new_commit_id
from streaming.log import CONTROL, Clock, EventLog, open_log, wall_clock
from streaming.place import (
    OpenPlace,
    Place,
    Progress,
    control_after,
    control_history,
    control_of,
    live,
    open_place,
    silent,
    state_of,
)
from streaming.state import LAYOUT as STATE_LAYOUT
from streaming.state import State
from streaming.store import NOTHING, Commit, Manifest, ParameterStore, open_store
from streaming.urls import mask

FORMAT = "croupier export"
LAYOUT = 1
APPEND_BYTES = 4 << 20
_MANIFEST, _CONTROL = "manifest.json", "control"
_BROKEN = (
    zipfile.BadZipFile, zlib.error, msgspec.MsgspecError, EOFError, KeyError, ValueError, OverflowError, RuntimeError,
    NotImplementedError, IndexError, TypeError,
)  # fmt: skip
"""What zipfile, numpy and msgspec raise for bytes that are not what they should be."""


class ArchiveError(StreamingError):
    """A file that is no sound export, or that cannot be imported so; the sentence says what to do."""


class Member(msgspec.Struct, frozen=True):
    """One file of the archive."""

    size: int
    blake2b: str


class ShardHead(msgspec.Struct, frozen=True):
    """How far a shard's tables go: offset in the old log, log time, and control records applied."""

    head: int
    log_time_ms: int
    applied: int


class ArchiveManifest(msgspec.Struct, frozen=True):
    """What the archive is and holds."""

    format: str
    layout: int
    state_layout: int
    exported_ms: int
    shards: list[ShardHead]
    policies: list[str]
    members: dict[str, Member]


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote. `behind`: records of the log that the learner had not come to, so they are not in it."""

    file: str
    size_bytes: int
    heads: list[int]
    behind: int
    policies: list[str]

    def lines(self) -> list[str]:
        lines = [
            f"{self.file}: {self.size_bytes:,} bytes, {len(self.heads)} shards, {len(self.policies)} policies "
            f"({', '.join(self.policies) or 'none'})",
            "It holds the signing keys: keep it as you keep those.",
        ]
        if self.behind:
            lines.append(
                f"{self.behind:,} records of the log were not learned yet and are not in it: to have them, let the "
                "server run until `croupier doctor` shows no lag, and export again."
            )
        return lines


@dataclass(frozen=True)
class ImportReport:
    """What `import_` made."""

    place: Place
    shards: int
    policies: list[str]
    labels: list[str]

    def lines(self) -> list[str]:
        names = ", ".join(self.policies) or "none"
        lines = [f"{self.place.name}: {self.shards} shards, {len(self.policies)} policies ({names})"]
        if self.labels:
            lines.append(f"An export has no labelled snapshots; these are gone here: {', '.join(self.labels)}")
        return [*lines, f"Start a server on it: croupier serve {self.place.options}"]


# ------------------------------------------------------------------------------------------------------------- export


def export(place: Place, file: Path, progress: Progress = silent, clock: Clock = wall_clock) -> ExportReport:
    """Writes what a place knows to `file`, which must not exist. Servers and learners may be running on the place.

    Raises ArchiveError where the file is there or cannot be written, and what `streaming.place.open_place` raises.
    """
    if file.exists():
        raise ArchiveError(f"{file} is there already: choose another name, or move it away")
    part = file.with_name(f"{file.name}.part")
    try:
        with open_place(place, clock) as opened:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w+b") as out:
                report = _write(opened, out, progress, clock)
                out.flush()
                os.fsync(out.fileno())
            size = part.stat().st_size
            os.rename(part, file)
    except OSError as error:
        raise ArchiveError(f"{file} cannot be written ({error.strerror}): choose a folder with room for it") from error
    finally:
        part.unlink(missing_ok=True)
    return ExportReport(str(file), size, *report)


def _write(
    opened: OpenPlace, out: io.BufferedRandom, progress: Progress, clock: Clock
) -> tuple[list[int], int, list[str]]:
    members: dict[str, Member] = {}
    heads: list[ShardHead] = []
    blobs: set[str] = set()
    policies: set[str] = set()
    behind = 0
    steps = opened.log.shards + 1
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:

        def add(name: str, content: bytes) -> None:
            members[name] = Member(len(content), hashlib.blake2b(content).hexdigest())
            archive.writestr(name, content)

        for shard in range(opened.log.shards):
            image = opened.store.load(shard)
            state, (_, head) = state_of(image), image.last
            control = control_of(state)
            for name in sorted(state.tables):
                add(f"shards/{shard}/{name}.npy", _npy(state, name))
            heads.append(ShardHead(head, _log_time_ms(state), control.applied))
            policies.update(control.policies)
            blobs.update(policy.graph.blob for policy in control.policies.values() if policy.graph)
            behind += opened.log.bounds(shard)[1] - head
            progress("shards", shard + 1, steps)
        # Read after the shards, so that it holds every record which one of them has applied.
        history = control_history(opened.log)
        add(_CONTROL, msgspec.msgpack.encode(history))
        blobs.update(_pending_blobs(history, min(head.applied for head in heads)))
        for blob in sorted(blobs):
            add(f"blobs/{blob}", opened.store.get_blob(blob))
        names = sorted(policies)
        manifest = ArchiveManifest(FORMAT, LAYOUT, STATE_LAYOUT, clock(), heads, names, members)
        archive.writestr(_MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    progress("shards", steps, steps)
    return [head.head for head in heads], behind, names


def _npy(state: State, name: str) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(state[name]), allow_pickle=False)
    return out.getvalue()


def _log_time_ms(state: State) -> int:
    """Log time of the shard's tables; 0 where it has none yet."""
    return int(state["log_time"][0, 0]) if "log_time" in state else 0


def _pending_blobs(history: list[bytes], applied: int) -> set[str]:
    blobs: set[str] = set()
    for record in (from_json(data) for _, data, _ in live(history, applied)):
        if isinstance(record, GraphPut):
            blobs.add(record.blob)
        elif isinstance(record, Restore):
            blobs.update(record.blobs)
    return blobs


# ------------------------------------------------------------------------------------------------------------- import


def import_(
    file: Path, place: Place, shards: int | None = None, progress: Progress = silent, clock: Clock = wall_clock
) -> ImportReport:
    """Makes a new place from an export. `shards` None: as many as it had.

    A data folder must be absent or empty; a log and a store of servers are made where there are none, and must hold
    nothing yet. With another number of shards, items and banks move to the shards that then own them; edges of policies
    that forget keep their values to rounding only. Raises ArchiveError, with nothing made, where the file is damaged,
    foreign or of another release, or the place holds something; and what opening log and store raises.
    """
    folder = place.folder
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArchiveError(f"{folder} is not an empty folder: import into a new one, or move that one away")
    if folder is None and not all("://" in url for url in place):
        raise ArchiveError(f"{place.name}: import into a data folder, or into a log and a store that are URLs")
    if shards is not None and not 1 <= shards <= 1024:
        raise ArchiveError(f"shards is {shards}: must be 1 to 1,024")
    try:
        manifest, contents = _open(file, progress)
        states, history, blobs = _parse(file, manifest, contents)
    except _BROKEN as error:
        raise ArchiveError(f"{file} is damaged ({error}): copy it again, or take an older export") from error
    if shards is not None and shards != len(states):
        if len({head.applied for head in manifest.shards}) > 1:
            raise ArchiveError(
                f"the shards in {file} had not all applied the newest control record, so their number cannot change: "
                "export again a second later, or import with as many shards as it has and export that"
            )
        states = reshard.redistribute(states, shards, blobs.__getitem__)
    time_ms = max(head.log_time_ms for head in manifest.shards)
    history, labels = _without_labels(history)
    knowledge = _Knowledge(states, history, blobs, time_ms)
    if folder is None:
        _make(place, knowledge, progress, clock)
    else:
        folder = folder.absolute()
        place = Place.of_folder(folder)
        _make_folder(folder, knowledge, progress, clock)
    return ImportReport(place, len(states), manifest.policies, labels)


def _without_labels(history: list[bytes]) -> tuple[list[bytes], list[str]]:
    """The control records, and more that delete all labels: the copies they speak of stayed where they were."""
    control, _ = control_after(history)
    labels = sorted(control.labels)
    drops = (
        events.control_frame(n, to_json(SnapshotDrop(label))) for n, label in enumerate(labels, control.applied + 1)
    )
    return [*history, *drops], labels


@dataclass(frozen=True)
class _Knowledge:
    """What an archive holds: each shard's tables, the control partition's records, graphs, and the latest log time."""

    states: list[State]
    history: list[bytes]
    blobs: dict[str, bytes]
    time_ms: int


def _open(file: Path, progress: Progress) -> tuple[ArchiveManifest, dict[str, bytes]]:
    """The manifest and all members, their checksums verified."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            if _MANIFEST not in names:
                raise ArchiveError(f"{file} is no export of croupier: it has no {_MANIFEST}")
            head = msgspec.json.decode(archive.read(_MANIFEST))
            if not isinstance(head, dict) or head.get("format") != FORMAT:
                raise ArchiveError(f"{file} is no export of croupier: its {_MANIFEST} does not say so")
            if head.get("layout") != LAYOUT or head.get("state_layout") != STATE_LAYOUT:
                raise ArchiveError(
                    f"{file} has layout {head.get('layout')}.{head.get('state_layout')}, this release reads "
                    f"{LAYOUT}.{STATE_LAYOUT}: import it with the release that wrote it"
                )
            manifest = msgspec.convert(head, ArchiveManifest)
            if names != manifest.members.keys() | {_MANIFEST}:
                raise ValueError("members are missing or added")
            contents = {}
            for done, (name, member) in enumerate(manifest.members.items(), 1):
                content = archive.read(name)
                if len(content) != member.size or hashlib.blake2b(content).hexdigest() != member.blake2b:
                    raise ValueError(f"{name} has another checksum")
                contents[name] = content
                progress("reading", done, len(manifest.members))
    except OSError as error:
        raise ArchiveError(f"{file} cannot be read: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"{file} is no export of croupier, or only a part of one ({error})") from error
    return manifest, contents


def _parse(
    file: Path, manifest: ArchiveManifest, contents: dict[str, bytes]
) -> tuple[list[State], list[bytes], dict[str, bytes]]:
    states = [State() for _ in manifest.shards]
    blobs = {}
    for name, content in contents.items():
        kind, _, rest = name.partition("/")
        if kind == "blobs":
            blobs[rest] = content
        elif kind == "shards":
            number, _, table = rest.partition("/")
            rows = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            states[int(number)].write(table.removesuffix(".npy"), rows)
    history = msgspec.msgpack.decode(contents[_CONTROL], type=list[bytes])
    newest = max(head.applied for head in manifest.shards)
    for shard, head in enumerate(manifest.shards):
        reached = [head.applied, *(n for n, _, _ in live(history, head.applied))][-1]
        if reached < newest:
            raise ArchiveError(f"{file} lacks control record {reached + 1}, which shard {shard} needs: export again")
    return states, history, blobs


def _make_folder(folder: Path, knowledge: _Knowledge, progress: Progress, clock: Clock) -> None:
    """The data folder, whole or not at all."""
    new = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".importing", dir=folder.parent))
        _make(Place.of_folder(new), knowledge, progress, clock)
        os.rename(new, folder)
    except OSError as error:
        raise ArchiveError(f"{folder} cannot be made ({error.strerror}): choose a folder with room for it") from error
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)


def _make(place: Place, knowledge: _Knowledge, progress: Progress, clock: Clock) -> None:
    """Writes it all, in the order that the module's docstring draws."""
    states = knowledge.states

    def now_ms() -> int:
        return max(knowledge.time_ms, clock())

    with contextlib.ExitStack() as stack:
        try:
            log = open_log(place.log, len(states), now_ms, write=True)
        except LayoutMismatch as error:
            raise ArchiveError(f"{error}; or import with --shards") from error
        stack.callback(log.close)
        store = open_store(place.store, now_ms)
        stack.callback(store.close)
        if store.manifest() is not None:
            raise ArchiveError(
                f"the store {mask(place.store)} holds something already: import under another name, or remove it"
            )
        _check_empty(place, log)
        store.create(Manifest(os.urandom(16).hex(), log.id, len(states), STATE_LAYOUT))
        for shard, state in enumerate(states):
            _place(store, shard, state, now_ms())
            progress("writing shards", shard + 1, len(states))
        for blob in knowledge.blobs.values():
            store.put_blob(blob)
        _check_empty(place, log)
        _append(log, [(CONTROL, record) for record in knowledge.history])
        batches: list[tuple[int, bytes]] = []
        for shard, state in enumerate(states):
            batches += [(shard, record) for _, _, record in live(knowledge.history, control_of(state).applied)]
            batches.append((shard, events.frame([])))
        _append(log, batches)
        for shard in range(len(states)):
            Learner(shard, log, store).poll()


def _append(log: EventLog, records: list[tuple[int, bytes]]) -> None:
    """A few MiB at a time: an append to Kafka has seconds."""
    some: list[tuple[int, bytes]] = []
    size = 0
    for record in records:
        some.append(record)
        size += len(record[1])
        if size >= APPEND_BYTES:
            log.append(some)
            some, size = [], 0
    log.append(some)


def _check_empty(place: Place, log: EventLog) -> None:
    if any(log.ends()):
        raise ArchiveError(
            f"the log {mask(place.log)} holds something already: import under another name, or remove it"
        )


def _place(store: ParameterStore, shard: int, state: State, now_ms: int) -> None:
    """Makes `state` the shard's base and its snapshot at offset 0."""
    commit_id = new_commit_id()
    store.commit(shard, Commit(commit_id, NOTHING, 0, now_ms, now_ms, State().take_delta()))
    # The stream keeps nothing: a follower that has nothing must load, not apply the empty commit.
    store.fold(shard, commit_id, state.take_parts()[0], keep=0)
    store.snapshot(shard)
