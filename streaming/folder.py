"""The data folder: the files of one embedded server, and how those who only look open them.

DATA/log.sqlite      the event log        DATA/store.sqlite    the parameter store
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from streaming.control import ControlState
from streaming.errors import LayoutMismatch, LogUnavailable, StoreUnavailable
from streaming.log import CONTROL, Clock, EventLog, wall_clock
from streaming.log.sqlite import SqliteLog
from streaming.state import State
from streaming.store import Image, Manifest, ParameterStore
from streaming.store.sqlite import SqliteStore

LOG_FILE, STORE_FILE = "log.sqlite", "store.sqlite"

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, how much of it is done, how much there is)."""


def silent(what: str, done: int, total: int) -> None:
    """The progress that nobody watches."""


class Folder(NamedTuple):
    """An open data folder. Its log is open for reading only."""

    path: Path
    log: EventLog
    store: ParameterStore
    manifest: Manifest


@contextlib.contextmanager
def open_folder(data: Path, clock: Clock = wall_clock) -> Iterator[Folder]:
    """The log and store of the folder at `data`, for reading; a server may be running on them.

    Raises LogUnavailable or StoreUnavailable where there is nothing yet, LogCorrupt or StoreCorrupt where a file is
    damaged or not ours, LayoutMismatch where the two do not belong together.
    """
    if not data.is_dir():
        raise LogUnavailable(f"there is no data folder at {data}: `croupier serve --data {data}` makes one")
    with contextlib.ExitStack() as stack:
        log = SqliteLog(str(data / LOG_FILE), None, clock)
        stack.callback(log.close)
        if not (data / STORE_FILE).exists():  # opening it would make one
            raise StoreUnavailable(
                f"there is no parameter store at {data / STORE_FILE}: restore log and store together from one backup"
            )
        store = SqliteStore(str(data / STORE_FILE), clock)
        stack.callback(store.close)
        yield Folder(data, log, store, checked_manifest(data, log, store))


def checked_manifest(data: Path, log: EventLog, store: ParameterStore) -> Manifest:
    """The store's manifest; raises LayoutMismatch where it does not name this log."""
    manifest = store.manifest()
    if manifest is None:
        raise LayoutMismatch(f"the store in {data} is empty: start the server once, it creates log and store together")
    if manifest.log_id != log.id or manifest.shards != log.shards:
        raise LayoutMismatch(
            f"the store in {data} belongs to log {manifest.log_id} with {manifest.shards} shards, but the log beside "
            f"it is {log.id} with {log.shards}: put the log and the store of one data folder together again"
        )
    return manifest


def state_of(image: Image) -> State:
    """The tables of a shard as the store holds them."""
    state = State()
    state.load(image.parts.values(), [commit.delta for commit in image.deltas])
    return state


def control_of(state: State) -> ControlState:
    """The control state that a shard's tables hold."""
    return ControlState.decode(state["control"].tobytes()) if "control" in state else ControlState()


def control_history(folder: Folder) -> list[bytes]:
    """All records of the control partition, which is never trimmed."""
    at, end = folder.log.bounds(CONTROL)
    history: list[bytes] = []
    while at < end:
        records = folder.log.read(CONTROL, at)
        if not records:
            break
        history += [record.data for record in records]
        at = records[-1].offset + 1
    return history
