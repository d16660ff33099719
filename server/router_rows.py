"""From the messages of the public topic to the log's events and the dead letters: a pure function but for `judge`.

message, UTF-8 JSON   {"decision_id": ..., "item": ..., "reward": ..., "event_id"?: ...}   (server.schemas)
                      or a list of them

dead letter, JSON     reason      not-json, or a refusal's (server.schemas.RefusalReason)
                      field       the field at fault, null where it is the whole
                      detail      a sentence
                      topic, partition, offset     where the message stands
                      index       place in the message's list, null where it is no list or could not be read, and in the
                                  one letter for all rows that are refused after LETTERS_MAX of the same message
                      value       the row (or the whole message where it could not be read), as it was sent
                      encoding    of value: utf-8; base64 where the bytes are none; null with a null value
                      size        bytes of what was sent: a value of more than LETTER_BYTES is left out
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from server.bodies import decode
from server.errors import Problem
from server.schemas import ACCEPTED, FeedbackRow, Verdict
from streaming import events

LETTER_BYTES = 700_000
"""So that a letter and its key are less than the 1 MiB that topics allow unless told otherwise."""
KEY_BYTES = 200_000
LETTERS_MAX = 1000
"""Rows of one message that get a letter each: a message of 1 MiB may be a list of 500,000 ones."""
FRAME_BYTES = 1 << 20
NOT_JSON = "not-json"
SLICE_BYTES = 4 << 20  # messages are judged so much at a time: memory stays bounded whatever one poll brings
_TEXT_MAX = 500


class Message(Protocol):
    """What a consumer hands over."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class DeadLetter(msgspec.Struct, frozen=True):
    """What the router could not take."""

    reason: str
    field: str | None
    detail: str
    topic: str
    partition: int
    offset: int
    index: int | None
    value: str | None
    encoding: str | None
    size: int


class Sorted(NamedTuple):
    """What becomes of some messages: events by shard, and letters with their keys."""

    accepted: int
    by_shard: dict[int, list[bytes]]
    dead: list[tuple[bytes | None, DeadLetter]]


class Refusal(NamedTuple):
    """Why a row is not taken: `server.schemas.Verdict` with one reason more."""

    reason: str
    field: str | None
    detail: str


_Place = tuple[Message, int | None]
"""Where a row stands: its message, and its place where that is a list."""


Judge = Callable[[Sequence[FeedbackRow]], tuple[list[Verdict], dict[int, list[bytes]]]]
_ANY = msgspec.json.Decoder(FeedbackRow | list[FeedbackRow])
_ONE = msgspec.json.Decoder(FeedbackRow)
_RAW = msgspec.json.Decoder(list[msgspec.Raw])


def sort(messages: Iterable[Message], judge: Judge) -> Sorted:
    """Reads the messages and has the rows judged, all at once."""
    rows: list[FeedbackRow] = []
    places: list[_Place] = []
    dead: list[tuple[_Place, Refusal]] = []
    for message in messages:
        try:
            found = _ANY.decode(message.value or b"")
        except (ValueError, RecursionError):  # not this, not JSON, not UTF-8: find out what and where
            for place, row in _read(message):
                if isinstance(row, FeedbackRow):
                    rows.append(row)
                    places.append(place)
                else:
                    dead.append((place, row))
            continue
        if isinstance(found, FeedbackRow):
            rows.append(found)
            places.append((message, None))
        elif found:
            rows += found
            places += [(message, index) for index in range(len(found))]
        else:
            empty = Refusal("invalid", None, "The list is empty; send at least one reward.")
            dead.append(((message, None), empty))
    verdicts, by_shard = judge(rows)
    readable = len(dead)
    for place, verdict in zip(places, verdicts, strict=True):
        if verdict is not ACCEPTED:
            dead.append((place, Refusal(verdict.reason or "invalid", verdict.field, verdict.detail or "")))
    return Sorted(len(rows) + readable - len(dead), by_shard, list(_letters(dead)))


def _read(message: Message) -> Iterator[tuple[_Place, FeedbackRow | Refusal]]:
    """The rows of a message that is not sound as a whole, an unsound one as its refusal."""
    value, whole = message.value, (message, None)
    if value is None:
        yield whole, Refusal("invalid", None, "The message has no value (a tombstone); send a reward.")
    elif not value.lstrip(b" \t\r\n").startswith(b"["):
        yield whole, _row(value)
    else:
        try:
            parts = decode(_RAW, value)
        except Problem as problem:
            yield whole, _refusal(problem)
        else:
            yield from (((message, index), _row(part)) for index, part in enumerate(parts))


def _row(part: bytes | msgspec.Raw) -> FeedbackRow | Refusal:
    try:
        return decode(_ONE, part)
    except Problem as problem:
        return _refusal(problem)


def _refusal(problem: Problem) -> Refusal:
    return Refusal(NOT_JSON if problem.status == 400 else "invalid", problem.field, problem.detail)


def _letters(refused: Iterable[tuple[_Place, Refusal]]) -> Iterator[tuple[bytes | None, DeadLetter]]:
    """A letter for each, the rest of a long list in one; a list is cut into its rows once."""
    cut: Message | None = None
    parts: list[msgspec.Raw] = []
    for (message, index), (reason, field, detail) in _shortened(refused):
        data = message.value
        if index is not None and data is not None:
            if cut is not message:
                cut, parts = message, _RAW.decode(data)
            data = bytes(parts[index])
        text, encoding = _text(data)
        letter = DeadLetter(
            reason, field and field[:_TEXT_MAX], detail[:_TEXT_MAX],
            message.topic, message.partition, message.offset, index, text, encoding, len(data or b""),
        )  # fmt: skip
        key = message.key
        yield key if key is None or len(key) <= KEY_BYTES else None, letter


def _shortened(refused: Iterable[tuple[_Place, Refusal]]) -> Iterator[tuple[_Place, Refusal]]:
    """The first `LETTERS_MAX` of each message, and for the rest of it one with the reason of the first of them."""
    counts: dict[tuple[str, int, int], int] = {}
    rest: dict[tuple[str, int, int], tuple[Message, Refusal]] = {}
    for place, why in refused:
        at = place[0].topic, place[0].partition, place[0].offset
        counts[at] = counts.get(at, 0) + 1
        if counts[at] <= LETTERS_MAX:
            yield place, why
        else:
            rest.setdefault(at, (place[0], why))
    for at, (message, why) in rest.items():
        more = f"{counts[at] - LETTERS_MAX:,} more rows of this list are refused, the first of them so: {why.detail}"
        yield (message, None), why._replace(detail=more)


def _text(data: bytes | None) -> tuple[str | None, str | None]:
    """(text, its encoding) of a value."""
    if data is None:
        return None, None
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), "base64"


def encoded(letter: DeadLetter) -> bytes:
    """The letter's bytes, at most `LETTER_BYTES`."""
    data = msgspec.json.encode(letter)
    if len(data) > LETTER_BYTES:
        data = msgspec.json.encode(msgspec.structs.replace(letter, value=None, encoding=None))
    return data


def frames(by_shard: dict[int, list[bytes]]) -> Iterator[tuple[int, bytes]]:
    """(shard, frame) of all events, frames of at most about `FRAME_BYTES`."""
    for shard, made in by_shard.items():
        start, size = 0, 0
        for at, event in enumerate(made):
            if size and size + len(event) > FRAME_BYTES:
                yield shard, events.frame(made[start:at])
                start, size = at, 0
            size += len(event)
        yield shard, events.frame(made[start:])


def slices(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The messages in runs of about `SLICE_BYTES`, at least one in each."""
    start, size = 0, 0
    for at, message in enumerate(messages):
        if size > SLICE_BYTES:
            yield messages[start:at]
            start, size = at, 0
        size += len(message.value or b"")
    if messages:
        yield messages[start:]
