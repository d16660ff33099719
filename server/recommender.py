"""The decision of one worker: its views of the replica, its stream of decision numbers, its outbox.

    request -> view of the policy -> choose -> payload -> event for each shard concerned -> outbox
                                                    `-> signed: the decision id that the caller gets

Nothing here waits for anything. The usual request for a Diag-LinUCB policy goes through all of it in one kernel
(`server.desk`).
"""

import secrets
from collections.abc import Callable

import numpy as np

from server.desk import Desk
from server.outbox import Outbox
from server.schemas import Decision, RecommendRequest
from server.settings import SHARDS_MAX
from server.shared import Row
from server.views import Views
from streaming import events, token
from streaming.log import wall_clock

WORDS = 256
STREAM_MAX_MS = 12 * 3_600_000  # the learner forgets a stream that was silent for a day


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
        self._of_shard = np.zeros(SHARDS_MAX, np.uint32)
        self._desk = Desk(views, outbox, row, self._of_shard)
        self._words: list[int] = []  # random bits for the decisions to come
        self._word = self._draw()
        self._begin_stream()

    def _begin_stream(self) -> None:
        self._stream = secrets.randbits(32)
        self._sequence = 0
        self._of_shard[:] = 0
        self._stream_until_ms = self._clock() + STREAM_MAX_MS

    def _now_ms(self) -> int:
        """The decision's time; its stream is begun anew before it wraps or ages."""
        now_ms = max(self._clock(), self.views.log_time_ms)  # the log's time stands still while a clock has gone back
        if self._sequence >= 1 << 32 or now_ms > self._stream_until_ms:
            self._begin_stream()
        return now_ms

    def recommend(self, query: RecommendRequest) -> Decision:
        """One decision; raises Problem."""
        view = self.views.view(query.policy)
        now_ms = self._now_ms()
        made = view.decide(query, self._stream << 32 | self._sequence, now_ms, self._word, self._rng)
        self._next()
        assert self.views.signing is not None, "the first catalog has a key"
        key_id, secret = self.views.signing
        payload = token.encode(made.context, key_id)
        if made.first is not None:
            self._outbox.add(made.shards[0], made.first, False)
        for shard in made.shards:
            sequence = int(self._of_shard[shard])
            self._of_shard[shard] = (sequence + 1) & 0xFFFFFFFF
            self._outbox.add(shard, events.decision(payload, sequence))
        self._row.decided(view.entry.number, made.context.mode)
        return Decision(token.sign(payload, secret), query.policy, view.entry.version, made.items)

    def answer(self, body: bytes) -> bytes | None:
        """The answer's body to a request's, by kernels; None, and nothing has happened, where it is no usual one."""
        if not self.views.generation or self._outbox.is_full:
            return None
        self.views.refresh()
        answer = self._desk.answer(body, self._word, self._now_ms(), self._stream, self._sequence)
        if answer is not None:
            self._next()
            self._outbox.filled()
        return answer

    def _next(self) -> None:
        self._sequence += 1
        self._word = self._words.pop() if self._words else self._draw()

    def _draw(self) -> int:
        """63 random bits, and more of them for later: one by one they cost as much as writing the token."""
        self._words = (self._rng.bit_generator.random_raw(WORDS) >> 1).tolist()
        return self._words.pop()
