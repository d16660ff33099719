"""Rewards before the log: each row is refused with a reason, or becomes one event for one shard.

What can be told from the token and the catalog is refused here; everything that depends on what has been learned
(late, duplicate, out of range, gone, unfunded) goes into the log and gets its one outcome there.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Protocol

from server.schemas import ACCEPTED, FeedbackRow, RefusalReason, Verdict
from server.view import NotYet, View
from streaming import events, token
from streaming.control import REWARD_MAX
from streaming.token import ARMS, ARMS_SIZE, HEADER_SIZE, SUM, TokenError

_POLICY = struct.Struct("<I")
_BANK = struct.Struct("<Q")
NOT_YET = "Another server made this decision with changes that are not seen here yet."
"""The detail of a verdict that is `unknown-policy` or `unknown-item` only for now."""


class Known(Protocol):
    """Keys and policies: a worker's `server.views.Views`, or the router's."""

    @property
    def keys(self) -> Mapping[int, bytes]: ...
    @property
    def by_number(self) -> Mapping[int, View]: ...
    @property
    def applied(self) -> int: ...  # the newest control record that they include
    def refresh(self) -> None: ...


class Counters(Protocol):
    """Counts refusals by reason."""

    def refusal(self, reason: str) -> None: ...


Judged = tuple[list[Verdict], dict[int, list[bytes]]]
"""A verdict for each row, and the accepted ones' events by shard."""


def judge(rows: Sequence[FeedbackRow], views: Known, counters: Counters) -> Judged:
    """Verdicts and events of the rows."""
    views.refresh()
    verdicts: list[Verdict] = []
    by_shard: dict[int, list[bytes]] = {}
    for row in rows:
        made = _event(row, views)
        if isinstance(made, Verdict):
            assert made.reason is not None
            if made.detail is not NOT_YET:
                counters.refusal(made.reason)
            verdicts.append(made)
        else:
            shard, event = made
            by_shard.setdefault(shard, []).append(event)
            verdicts.append(ACCEPTED)
    return verdicts, by_shard


def _event(row: FeedbackRow, views: Known) -> Verdict | tuple[int, bytes]:
    try:
        payload = token.verify(row.decision_id, views.keys)
    except TokenError as error:
        return _refused("bad-token", "decision_id", f"{error}.".capitalize())
    policy = _POLICY.unpack_from(payload, 4)[0]
    view = views.by_number.get(policy)
    if view is None:
        why = NOT_YET if policy > views.applied else "The policy of this decision was deleted."
        return _refused("unknown-policy", "decision_id", why)
    try:
        slot = _slot(view, payload, row.item)
    except NotYet:
        return _refused("unknown-item", "item", NOT_YET)
    if slot is None:
        return _refused("unknown-item", "item", f"The decision did not show item {row.item!r:.80}.")
    if not abs(row.reward) <= REWARD_MAX:
        return _refused("out-of-range", "reward", f"A reward must be a number within +-{REWARD_MAX:g}.")
    if payload[3] & 3 == SUM and row.event_id is None:
        detail = "This policy sums rewards, so each needs an event_id by which a repeat is known."
        return _refused("missing-event-id", "event_id", detail)
    event_hash = 0 if row.event_id is None else events.event_hash(row.event_id)
    number, bank = slot[1], slot[2]
    return view.shard_of(number, bank), events.reward(payload, slot[0], row.reward, event_hash)


def _slot(view: View, payload: bytes, item: str) -> tuple[int, int, int] | None:
    """(slot, item number, bank key) of an item in a decision."""
    arms = payload[2] == ARMS
    k = payload[23]
    at = ARMS_SIZE if arms else HEADER_SIZE + 4 * payload[22]
    numbers = struct.unpack_from(f"<{k}I", payload, at)
    slot = view.slot(item, numbers)
    if slot is None:
        return None
    return slot, numbers[slot], _BANK.unpack_from(payload, 40)[0] if arms else 0


def _refused(reason: RefusalReason, field: str, detail: str) -> Verdict:
    return Verdict("refused", reason, field, detail)
