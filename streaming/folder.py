"""Goes as soon as nothing imports it: `streaming.place` has all of this."""

from pathlib import Path

from streaming.place import LOG_FILE, STORE_FILE, Place, control_of, open_place, state_of

__all__ = ["LOG_FILE", "STORE_FILE", "control_of", "open_folder", "state_of"]


def open_folder(data: Path):  # type: ignore[no-untyped-def]
    return open_place(Place.of_folder(data))
