"""The decision of one worker: its views of the replica, its stream of decision numbers, its outbox.

    request -> view of the policy -> choose -> payload -> event for each shard concerned -> outbox
                                                    `-> signed: the decision id that the caller gets

Nothing here waits for anything: the catalog's generation is one memory read, and a new catalog is mapped when it
changes.
"""

import secrets
import time
from collections.abc import Callable

import msgspec
import numpy as np

from server import catalog as catalogs
from server import errors, views
from server.catalog import Catalog
from server.outbox import Outbox
from server.schemas import Decision, RecommendRequest
from server.shared import GENERATION, SEEN, HostFile, Row, RunFolder
from server.views import View
from streaming import events, token
from streaming.control import Key
from streaming.log import wall_clock

STREAM_MAX_MS = 12 * 3_600_000  # the learner forgets a stream that was silent for a day
KEY_REST_MS = 5_000  # a new key verifies everywhere before it signs
_TRIES = 100
_CATALOG = msgspec.msgpack.Decoder(Catalog)


class Views:
    """The policies as the newest catalog has them. `by_name`, `by_number`, and the keys."""

    def __init__(self, host: HostFile, row: Row, folder: RunFolder, clock: Callable[[], int] = wall_clock) -> None:
        self._host, self._row, self._folder, self._clock = host, row, folder, clock
        self.generation = 0
        self.by_name: dict[str, View] = {}
        self.by_number: dict[int, View] = {}
        self.keys: dict[int, bytes] = {}
        self._all_keys: list[Key] = []
        self.signing: tuple[int, bytes] | None = None
        self.ordered = False  # some policy learns a reward only after its decision

    def refresh(self) -> None:
        """Takes the newest catalog if it is not the one in use."""
        if self._host.words[GENERATION] != self.generation:
            self._reload()

    def _reload(self) -> None:
        for _ in range(_TRIES):
            generation = self._host.words[GENERATION]
            try:
                catalog = _CATALOG.decode((self._folder.first / catalogs.name_of(generation)).read_bytes())
                made = [
                    views.make(entry, catalog.shards, self.by_number.get(entry.number)) for entry in catalog.entries
                ]
                break
            except FileNotFoundError:  # the agent has swapped it again and unlinked this one
                time.sleep(0.001)
        else:
            if self.generation:
                return  # what is in use still works; the next call tries again
            raise errors.not_ready()
        self.by_name = {view.entry.name: view for view in made}
        self.by_number = {view.entry.number: view for view in made}
        self._all_keys = sorted(catalog.keys.values(), key=lambda key: key.added_ms)
        self.keys = {key.id: key.secret for key in self._all_keys}
        self.choose_key()
        self.ordered = any(entry.spec.parameters.get("rule") == "classic" for entry in catalog.entries)
        self._row.keep_policies(self.by_number)
        self.generation = generation
        self._row[SEEN] = generation

    def choose_key(self) -> None:
        """Signs with the newest key that has rested; with the oldest where none has."""
        if self._all_keys:
            rested = [key for key in self._all_keys if key.added_ms + KEY_REST_MS <= self._clock()]
            key = (rested or self._all_keys[:1])[-1]
            self.signing = key.id, key.secret

    def view(self, name: str) -> View:
        """The policy's view; 404, or 503 before the first load."""
        self.refresh()
        view = self.by_name.get(name)
        if view is None:
            raise errors.unknown_policy(name) if self.generation else errors.not_ready()
        return view


class Recommender:
    """Answers recommend requests. `rng` and `clock` are passed in; one instance serves one thread."""

    def __init__(
        self,
        views: Views,
        outbox: Outbox,
        row: Row,
        rng: np.random.Generator | None = None,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self.views = views
        self._outbox = outbox
        self._row = row
        self._rng = np.random.default_rng() if rng is None else rng
        self._clock = clock
        self._begin_stream()

    def _begin_stream(self) -> None:
        self._stream = secrets.randbits(32)
        self._sequence = 0
        self._of_shard: dict[int, int] = {}
        self._stream_until_ms = self._clock() + STREAM_MAX_MS

    def recommend(self, query: RecommendRequest) -> Decision:
        """One decision; raises Problem."""
        view = self.views.view(query.policy)
        now_ms = self._clock()
        if self._sequence >= 1 << 32 or now_ms > self._stream_until_ms:
            self._begin_stream()
        made = view.decide(query, self._stream << 32 | self._sequence, now_ms, self._rng)
        self._sequence += 1
        assert self.views.signing is not None, "the first catalog has a key"
        key_id, secret = self.views.signing
        payload = token.encode(made.context, key_id)
        if made.first is not None:
            self._outbox.add(made.shards[0], made.first, False)
        for shard in made.shards:
            sequence = self._of_shard.get(shard, 0)
            self._of_shard[shard] = sequence + 1
            self._outbox.add(shard, events.decision(payload, sequence))
        self._row.decided(view.entry.number, made.context.mode)
        return Decision(token.sign(payload, secret), query.policy, view.entry.version, made.items)
