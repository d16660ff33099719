"""All policies as the newest catalog has them, mapped into this worker.

The catalog's generation is one memory read; when it has changed, the new catalog is read and files that are new are
mapped. What is the same in both is kept, so a change of one policy costs little where there are a thousand.
"""

import time
from collections.abc import Callable
from typing import Any

import msgspec
from numpy.typing import NDArray

from server import catalog as catalogs
from server import errors
from server.catalog import Catalog, Entry
from server.shared import GENERATION, LOG_TIME, SEEN, HostFile, Row, RunFolder, arrays_in, map_file
from server.view import View
from server.view_arms import ArmsView
from server.view_diag import DiagView, GraphlessView
from streaming.control import Key
from streaming.log import wall_clock

KEY_REST_MS = 5_000  # a new key verifies everywhere before it signs
_TRIES = 100
_CATALOG = msgspec.msgpack.Decoder(Catalog)


class Views:
    """The policies as the newest catalog has them. `by_name`, `by_number`, and the keys."""

    def __init__(self, host: HostFile, row: Row, folder: RunFolder, clock: Callable[[], int] = wall_clock) -> None:
        self._host, self._row, self._folder, self._clock = host, row, folder, clock
        self.generation = 0
        self.applied = 0
        self.by_name: dict[str, View] = {}
        self.by_number: dict[int, View] = {}
        self.keys: dict[int, bytes] = {}
        self._all_keys: list[Key] = []
        self.signing: tuple[int, bytes] | None = None
        self.ordered = False  # some policy learns a reward only after its decision

    @property
    def log_time_ms(self) -> int:
        """The newest log time that the replica has seen."""
        return self._host.words[LOG_TIME]

    def refresh(self) -> None:
        """Takes the newest catalog if it is not the one in use."""
        if self._host.words[GENERATION] != self.generation:
            self._reload()

    def _reload(self) -> None:
        for _ in range(_TRIES):
            generation = self._host.words[GENERATION]
            try:
                catalog = _CATALOG.decode(self._folder.find(catalogs.name_of(generation)).read_bytes())
                # All files first: making a view takes so long that the agent may swap another table meanwhile.
                arrays = [self._arrays(entry) for entry in catalog.entries]
                break
            except FileNotFoundError:  # the agent has swapped it again and unlinked this one
                time.sleep(0.001)
        else:
            if self.generation:
                return  # what is in use still works; the next call tries again
            raise errors.not_ready()
        made = [
            make(entry, its, catalog.shards, self.by_number.get(entry.number))
            for entry, its in zip(catalog.entries, arrays, strict=True)
        ]
        self.applied = catalog.applied
        self.by_name = {view.entry.name: view for view in made}
        self.by_number = {view.entry.number: view for view in made}
        self._all_keys = sorted(catalog.keys.values(), key=lambda key: key.added_ms)
        self.keys = {key.id: key.secret for key in self._all_keys}
        self.choose_key()
        self.ordered = any(entry.spec.parameters.get("rule") == "classic" for entry in catalog.entries)
        self._row.keep_policies(self.by_number)
        self.generation = generation
        self._row[SEEN] = generation

    def _arrays(self, entry: Entry) -> dict[str, NDArray[Any]]:
        """The arrays of an entry's file, mapped now unless they are already. FileNotFoundError: too late."""
        if not entry.path:
            return {}
        before = self.by_number.get(entry.number)
        if before is not None and before.entry.path == entry.path:
            return before.arrays
        return arrays_in(map_file(entry.path), entry.arrays)

    def choose_key(self) -> None:
        """Signs with the newest key that has rested; with the oldest where none has."""
        if self._all_keys:
            rested = [key for key in self._all_keys if key.added_ms + KEY_REST_MS <= self._clock()]
            key = (rested or self._all_keys[:1])[-1]
            signing = key.id, key.secret
            if signing != self.signing:  # who made something of it sees by its identity whether it is another
                self.signing = signing

    def view(self, name: str) -> View:
        """The policy's view; 404, or 503 before the first load."""
        self.refresh()
        view = self.by_name.get(name)
        if view is None:
            raise errors.unknown_policy(name) if self.generation else errors.not_ready()
        return view


def make(entry: Entry, arrays: dict[str, NDArray[Any]], shards: int, before: View | None) -> View:
    """The view of an entry over its arrays; `before`, the policy's former view, lends what is the same."""
    if before is not None and before.entry == entry and before.shards == shards:
        return before
    if not entry.path:
        return GraphlessView(entry, {}, shards)
    same = before is not None and before.entry.path == entry.path
    if entry.spec.is_diag:
        return DiagView(entry, arrays, shards, before if same and isinstance(before, DiagView) else None)
    return ArmsView(entry, arrays, shards)
