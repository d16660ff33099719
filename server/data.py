"""The data folder: who may use it, and the log and the store in it.

log.sqlite     the event log          store.sqlite   the parameter store
lock           held by the one server that runs on this folder
run/           shared files, where memory has no room for them
"""

import fcntl
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from streaming.errors import LayoutMismatch
from streaming.folder import LOG_FILE, STORE_FILE
from streaming.log import Clock, EventLog, open_log, wall_clock
from streaming.state import LAYOUT
from streaming.store import Manifest, ParameterStore, open_store

LOCK = "lock"


class DataFolderError(Exception):
    """The data folder cannot be used; the sentence says why and what to do."""


class Parts(NamedTuple):
    """An open log and store that belong together."""

    log: EventLog
    store: ParameterStore

    def close(self) -> None:
        self.log.close()
        self.store.close()


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


def prepare(data: Path, shards: int) -> str:
    """Makes log and store where there are none, checks that they belong together; the store's id.

    `shards` 0 takes the number that the folder has, 1 for a new one.
    Everything is closed again, so that it can be followed by a fork. Raises StreamingError.
    """
    new = not (data / LOG_FILE).exists()
    parts = open_parts(data, shards or (1 if new else None), write=True)
    try:
        manifest = parts.store.manifest()
        if manifest is None:
            if parts.log.bounds(0)[1] or parts.log.bounds(-1)[1]:
                raise LayoutMismatch(
                    f"{data / LOG_FILE} has records, but {data / STORE_FILE} is empty: restore both from one backup, "
                    "or move the data folder away to start anew"
                )
            manifest = Manifest(secrets.token_hex(8), parts.log.id, parts.log.shards, LAYOUT)
            parts.store.create(manifest)
        if manifest.log_id != parts.log.id or manifest.shards != parts.log.shards:
            raise LayoutMismatch(
                f"{data / STORE_FILE} was made for another log than {data / LOG_FILE}: restore both from "
                "one backup, or move the data folder away to start anew"
            )
        return manifest.id
    finally:
        parts.close()


def open_parts(data: Path, shards: int | None = None, *, write: bool, clock: Clock = wall_clock) -> Parts:
    """The log and the store of a data folder; `write` makes this process the log's writer."""
    log = open_log(data / LOG_FILE, shards, clock, write=write)
    try:
        return Parts(log, open_store(data / STORE_FILE, clock))
    except BaseException:
        log.close()
        raise
