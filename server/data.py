"""What a server works on: its data folder, and the log and the store, which are files in it or servers of their own.

embedded       DATA/log.sqlite   the event log          DATA/store.sqlite   the parameter store
distributed    the topics of a Kafka                    the keys of a Redis, or of a cluster of them

DATA/lock      held by the one server that runs on this folder; two servers on one host take two folders
DATA/run/      shared files, where memory has no room for them
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from server.settings import Settings
from streaming.errors import LayoutMismatch, LogUnavailable
from streaming.log import Clock, EventLog, open_log, wall_clock
from streaming.place import Place, emptied, half_import
from streaming.state import LAYOUT
from streaming.store import Manifest, ParameterStore, open_store
from streaming.urls import mask

LOCK = "lock"
SHARDS, SHARDS_APART = 1, 8
"""Of a new log, where the settings do not say."""


class DataFolderError(Exception):
    """The data folder cannot be used; the sentence says why and what to do."""


class Parts(NamedTuple):
    """An open log and store that belong together."""

    log: EventLog
    store: ParameterStore

    def close(self) -> None:
        self.log.close()
        self.store.close()


def place_of(settings: Settings) -> Place:
    """Where the log and the store of a server with these settings are."""
    return Place(settings.log, settings.store) if settings.log else Place.of_folder(settings.data)


def run_id(settings: Settings, store_id: str) -> str:
    """What the run folder is called after: servers that share a store have a data folder each."""
    if not settings.log:
        return store_id
    return f"{store_id}-{hashlib.blake2b(bytes(settings.data.resolve()), digest_size=4).hexdigest()}"


def take(data: Path) -> int:
    """Makes the folder and takes its lock; the descriptor holds it until it is closed. Raises DataFolderError."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        handle = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataFolderError(
            f"the data folder {data} cannot be used: {error.strerror}; choose another with --data."
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise DataFolderError(
            f"another server runs on the data folder {data}: stop it first, or give this one a folder with --data."
        ) from None
    return handle


def prepare(place: Place, shards: int) -> str:
    """Makes log and store where there are none, checks that they belong together; the store's id.

    `shards` 0 takes the number that the log has, or that of a new one. Any number of servers may do this at once in
    Kafka and Redis. Everything is closed again. Raises StreamingError; ValueError for a URL that cannot be.
    """
    parts = _opened_or_made(place, shards)
    try:
        ends = parts.log.ends()  # before the manifest: who makes a store appends to the log after that
        manifest = parts.store.manifest()
        if manifest is None and any(ends):
            raise LayoutMismatch(emptied(place))
        if not any(ends):
            manifest = _created(parts, manifest)
        assert manifest is not None
        if manifest.log_id != parts.log.id or manifest.shards != parts.log.shards:
            raise LayoutMismatch(_foreign(place))
        if manifest.layout != LAYOUT:
            raise LayoutMismatch(
                f"{mask(place.store)} has layout {manifest.layout}, this release reads layout {LAYOUT}: use the "
                "release that wrote it, `croupier export` there and `croupier import` here"
            )
        if half_import(parts.log, parts.store):
            raise LayoutMismatch(
                f"an import into {place.name} was not finished: import again under a new name, or remove what it made"
            )
        return manifest.id
    finally:
        parts.close()


def _opened_or_made(place: Place, shards: int) -> Parts:
    if shards:
        return open_parts(place, shards, write=True)
    if place.folder is not None:
        return open_parts(place, None if Path(place.log).exists() else SHARDS, write=True)
    with contextlib.suppress(LogUnavailable):  # there are no topics; or no brokers, and then it says so again
        return open_parts(place, write=True)
    try:
        return open_parts(place, SHARDS_APART, write=True)
    except LayoutMismatch:  # the brokers have come back meanwhile, or another server has made it, with another number
        return open_parts(place, write=True)


def _created(parts: Parts, manifest: Manifest | None) -> Manifest | None:
    """The manifest of a store that nobody has used yet; whoever was cut off while making it is helped out."""
    new = manifest or Manifest(secrets.token_hex(8), parts.log.id, parts.log.shards, LAYOUT)
    try:
        parts.store.create(new)
    except LayoutMismatch:  # another server was quicker
        there = parts.store.manifest()
        if there is None:
            raise
        parts.store.create(there)
    return parts.store.manifest()


def _foreign(place: Place) -> str:
    if place.folder is not None:
        return (
            f"{place.store} was made for another log than {place.log}: restore both from "
            "one backup, or move the data folder away to start anew"
        )
    return f"the parameter store {mask(place.store)} was made for another log than {mask(place.log)}: {place.together}"


def open_parts(place: Place, shards: int | None = None, *, write: bool, clock: Clock = wall_clock) -> Parts:
    """The log and the store of a place; `write` opens the log for appending, and creates it if `shards` is given."""
    log = open_log(place.log, shards, clock, write=write)
    try:
        return Parts(log, open_store(place.store, clock))
    except BaseException:
        log.close()
        raise
