"""A place: where one event log and one parameter store are, and how those who only look open the two.

    files    DATA/log.sqlite    DATA/store.sqlite      one machine: `Place.of_folder(DATA)`
    URLs     kafka://...        redis://...            many machines: `Place("kafka://...", "redis://...")`

What works on a place (replay, export, doctor, rebuild) asks only what `EventLog` and `ParameterStore` promise, so one
kind is as good as the other.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from streaming import events
from streaming.control import ControlError, ControlState, from_json
from streaming.errors import LayoutMismatch, LogUnavailable, StoreUnavailable
from streaming.log import CONTROL, Clock, EventLog, open_log, wall_clock
from streaming.state import State
from streaming.store import NOTHING, Image, Manifest, ParameterStore, SnapshotInfo, automatic, open_store
from streaming.urls import mask

__all__ = [
    "LOG_FILE",
    "STORE_FILE",
    "OpenPlace",
    "Place",
    "Progress",
    "checked_manifest",
    "control_after",
    "control_history",
    "control_of",
    "emptied",
    "half_import",
    "live",
    "oldest_snapshot",
    "open_place",
    "silent",
    "state_of",
]

LOG_FILE, STORE_FILE = "log.sqlite", "store.sqlite"

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, how much of it is done, how much there is)."""


def silent(what: str, done: int, total: int) -> None:
    """The progress that nobody watches."""


class Place(NamedTuple):
    """The log and the store that belong together, each a URL or the path of an SQLite file.

    >>> Place("kafka://h1:9092/shop", "redis://:hunter2@h2:6379/shop").name
    'kafka://h1:9092/shop and redis://***@h2:6379/shop'
    """

    log: str
    store: str

    @classmethod
    def of_folder(cls, data: Path) -> "Place":
        """The files of a data folder.

        >>> Place.of_folder(Path("/var/lib/croupier")).name
        '/var/lib/croupier'
        """
        return cls(str(data / LOG_FILE), str(data / STORE_FILE))

    @property
    def folder(self) -> Path | None:
        """The data folder; None where log and store are not the two files of one."""
        data = Path(self.log).parent
        return data if "://" not in self.log and self == Place.of_folder(data) else None

    @property
    def name(self) -> str:
        """What to call it, fit to be shown."""
        return str(self.folder) if self.folder is not None else f"{mask(self.log)} and {mask(self.store)}"

    @property
    def options(self) -> str:
        """How a command is told of it."""
        if self.folder is not None:
            return f"--data {self.folder}"
        return f"--log '{mask(self.log)}' --store '{mask(self.store)}'"

    @property
    def together(self) -> str:
        """What to do when log and store do not fit."""
        if self.folder is not None:
            return "restore log and store together from one backup"
        return "name the log and the store that belong together, or `croupier import` an export under a new name"


class OpenPlace(NamedTuple):
    """An open log and store that belong together."""

    place: Place
    log: EventLog
    store: ParameterStore
    manifest: Manifest


@contextlib.contextmanager
def open_place(place: Place, clock: Clock = wall_clock, write: bool = False) -> Iterator[OpenPlace]:
    """The log and store of a place, for reading; servers and learners may be running on them.

    `write` makes this process the log's writer, where a log has one.
    Raises LogUnavailable or StoreUnavailable where one is away or there is nothing yet, LogCorrupt or StoreCorrupt
    where it is damaged or not ours, LayoutMismatch where the two do not belong together.
    """
    if place.folder is not None and not place.folder.is_dir():
        raise LogUnavailable(
            f"there is no data folder at {place.folder}: `croupier serve --data {place.folder}` makes one"
        )
    with contextlib.ExitStack() as stack:
        log = open_log(place.log, None, clock, write=write)
        stack.callback(log.close)
        if "://" not in place.store and not Path(place.store).exists():  # opening it would make one
            raise StoreUnavailable(f"there is no parameter store at {place.store}: {place.together}")
        store = open_store(place.store, clock)
        stack.callback(store.close)
        yield OpenPlace(place, log, store, checked_manifest(place, log, store))


def checked_manifest(place: Place, log: EventLog, store: ParameterStore) -> Manifest:
    """The store's manifest.

    Raises LayoutMismatch where it does not name this log, or an import into the place was never finished.
    """
    ends = log.ends()  # before the manifest: who makes a store appends to the log after that
    manifest = store.manifest()
    if manifest is None and any(ends):
        raise LayoutMismatch(emptied(place))
    if manifest is None:
        raise LayoutMismatch(
            f"the store in {place.name} is empty: start a server once (croupier serve {place.options}), it creates log "
            "and store together"
        )
    if manifest.log_id != log.id or manifest.shards != log.shards:
        raise LayoutMismatch(
            f"the store in {place.name} belongs to log {manifest.log_id} with {manifest.shards} shards, but this log "
            f"is {log.id} with {log.shards}: {place.together}"
        )
    if half_import(log, store):
        raise LayoutMismatch(
            f"an import into {place.name} was not finished: remove what it made, or import again under a new name"
        )
    return manifest


def emptied(place: Place) -> str:
    """What to do where the log has records and the store has nothing."""
    if place.folder is not None:
        return (
            f"{place.log} has records, but {place.store} is empty: restore both from one backup, "
            "or move the data folder away to start anew"
        )
    return (
        f"the event log {mask(place.log)} has records, but the parameter store {mask(place.store)} is empty: "
        "restore Redis from its backup, `croupier import` an export under a new name, or, where nothing of the log was "
        f"trimmed and no policy has a graph, make the parameters anew from it (croupier rebuild {place.options})"
    )


def half_import(log: EventLog, store: ParameterStore) -> bool:
    """Whether an import into this place was cut off.

    `streaming.archive` commits every shard's tables at offset 0 before it appends anything, and to each shard's
    partition last: parameters of offset 0 beside an empty partition are an import that did not come to its end.
    """
    lasts, ends = store.lasts(), log.ends()
    return any(last != NOTHING and head == 0 and end == 0 for (last, head), end in zip(lasts, ends, strict=False))


def oldest_snapshot(opened: OpenPlace, shard: int, but: Collection[SnapshotInfo] = ()) -> SnapshotInfo | None:
    """The oldest automatic snapshot that the log goes on from, `but` for these; None where there is none.

    An older one may be there beside it: of a learner that slept while another took newer ones and trimmed the log, or
    brought back by a failover of the store that lost its dropping.
    """
    start, _ = opened.log.bounds(shard)
    return next((info for info in automatic(opened.store, shard) if info.head >= start and info not in but), None)


def state_of(image: Image) -> State:
    """The tables of a shard as the store holds them."""
    state = State()
    state.load(image.parts.values(), [commit.delta for commit in image.deltas])
    return state


def control_of(state: State) -> ControlState:
    """The control state that a shard's tables hold."""
    return ControlState.decode(state["control"].tobytes()) if "control" in state else ControlState()


def live(history: Iterable[bytes], applied: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
    """(n, JSON, record) of the control records after number `applied` that count, in order.

    The first record with number last + 1 counts. Any other lost a race between two agents and never happened.
    """
    for data in history:
        record = events.control_of(data)
        if record is not None and record[0] == applied + 1:
            applied += 1
            yield *record, data


def control_after(history: Iterable[bytes]) -> tuple[ControlState, list[str]]:
    """What all records of the control partition say together, and which of them had no effect, and why."""
    state, ignored = ControlState(), []
    for n, data, _ in live(history):
        before = state.encode()
        try:
            state.apply(n, from_json(data))
        except ControlError as error:
            ignored.append(f"{n} ({error})")
            state = ControlState.decode(before)
            state.applied = n
    return state, ignored


def control_history(log: EventLog) -> list[bytes]:
    """All records of the control partition, which is never trimmed; `live` says which of them count."""
    at, end = log.bounds(CONTROL)
    history: list[bytes] = []
    while at < end:
        records = log.read(CONTROL, at)
        if not records:
            raise LogUnavailable(f"the control partition ends at {end:,}, but nothing can be read at {at:,}: try again")
        history += [record.data for record in records]
        at = records[-1].offset + 1
    return history
