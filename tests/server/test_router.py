"""The router's judgement, against a worker's over the same store; and what it does with messages, in one thread."""

import base64
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from server import router_rows
from server.feedback import Judged, judge
from server.router import Router
from server.router_metrics import RouterMetrics
from server.router_rows import DeadLetter, Message, encoded, frames, slices, sort
from server.router_view import KnownPolicies
from server.schemas import FeedbackRow, User
from streaming import events
from streaming.control import GraphPut, ItemDelete, KeyAdd, PolicyDelete, PolicyPut, PolicySpec, RewardContract
from streaming.errors import LogUnavailable, StoreUnavailable
from tests.server.host_parts import Host, random_graph

BANKER = PolicyPut("ads", PolicySpec("banker"), ["a", "b", "c"])
THREE = PolicyPut("three", PolicySpec("thompson-beta"), ["a", "b", "c"])
SUMS = PolicyPut("sums", PolicySpec("banker", RewardContract(aggregation="sum")), ["a", "b"])


class Sent(NamedTuple):
    """A message as a consumer gives it."""

    value: bytes | None
    offset: int = 0
    key: bytes | None = None
    topic: str = "shop.rewards"
    partition: int = 0


class Topic:
    """Rewards and letters in lists; a consumer that is closed without a commit reads again."""

    def __init__(self, values: Sequence[bytes | None] = ()) -> None:
        self.rebalances = 0
        self.messages: list[Message] = [Sent(value, offset) for offset, value in enumerate(values)]
        self.at = self.handled = self.committed = 0
        self.letters: list[tuple[bytes | None, DeadLetter]] = []
        self.stayed = 0

    def poll(self, timeout_ms: int) -> list[Message]:
        assert timeout_ms > 0
        found, self.at = self.messages[self.at :], len(self.messages)
        return found

    def stay(self) -> None:
        self.stayed += 1

    def done(self, messages: Sequence[Message]) -> None:
        self.handled = messages[-1].offset + 1

    def commit(self, now: bool = False) -> None:
        del now
        self.committed = self.handled

    def lag(self) -> dict[int, int]:
        return {0: len(self.messages) - self.handled}

    def append(self, letters: Sequence[tuple[bytes | None, bytes]]) -> None:
        self.letters += [(key, msgspec.json.decode(letter, type=DeadLetter)) for key, letter in letters]


def body(decision_id: str, item: str, reward: object, **more: object) -> bytes:
    return msgspec.json.encode({"decision_id": decision_id, "item": item, "reward": reward, **more})


def router_of(host: Host, topic: Topic) -> Router:
    known = KnownPolicies(host.store, host.log)
    known.renew()
    return Router(host.log, known, topic, topic, RouterMetrics(), threading.Event())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path, shards=3)
    host.follow(BANKER, THREE, SUMS, PolicyPut("empty", PolicySpec("diag-linucb")))
    host.diag("films", random_graph(), clusters_per_user=2)
    return host


def rows_of_all_kinds(host: Host) -> list[FeedbackRow]:
    """Sound and unsound rewards of three policies, one of which then is deleted, and of items that then are gone."""
    rng = np.random.default_rng(3)
    shown = [host.recommend("ads", k=2, user=User(segment=f"s{i}")) for i in range(4)]
    shown += [host.recommend("sums", k=1)]
    shown += [host.recommend("films", k=3, user=User(embedding=rng.normal(size=4).tolist())) for _ in range(4)]
    rows = [FeedbackRow(each.decision_id, item.id, 1.0) for each in shown for item in each.items]
    token, item = rows[0].decision_id, rows[0].item
    rows += [
        FeedbackRow(rows[-1].decision_id, "never heard of", 1.0),
        FeedbackRow(token, "never heard of", 1.0),
        FeedbackRow(token[:-4] + "AAAA", item, 1.0),
        FeedbackRow("", item, 1.0),
        FeedbackRow("ünsigned", item, 1.0),
        FeedbackRow(token, item, 1e301),
        FeedbackRow(token, item, -0.5, "order-1"),
    ]
    return [*rows, *(msgspec.structs.replace(row, event_id="e") for row in rows)]


class Count:
    """Refusals by reason."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def refusal(self, reason: str) -> None:
        self.reasons.append(reason)


def same_judgement(host: Host, known: KnownPolicies, rows: list[FeedbackRow]) -> list[str]:
    """Asserts that the router and a worker say the same and make the same events; the refusals."""
    theirs, ours = Count(), Count()
    known.renew()
    assert judge(rows, known, ours) == judge(rows, host.views, theirs)
    assert ours.reasons == theirs.reasons
    return sorted(set(ours.reasons))


def test_it_judges_as_the_http_route_does(host: Host) -> None:
    known = KnownPolicies(host.store, host.log)
    rows = rows_of_all_kinds(host)
    assert same_judgement(host, known, rows) == ["bad-token", "missing-event-id", "out-of-range", "unknown-item"]
    assert known.applied == host.controls
    # Arms go, another graph keeps some items and brings others, a policy ends, a key comes: by the feed, step by step.
    host.follow(ItemDelete("ads", "a"))
    same_judgement(host, known, rows)
    host.follow(GraphPut("films", host.store.put_blob(random_graph(seed=5, items=25).to_bytes())))
    same_judgement(host, known, rows_of_all_kinds(host) + rows)
    host.follow(PolicyDelete("ads"), KeyAdd(1, "22" * 32, 0))
    assert "unknown-policy" in same_judgement(host, known, rows)
    host.follow(PolicyPut("ads", BANKER.spec, ["a", "x"]))
    same_judgement(host, known, rows)
    # And whoever reads the shard anew, after a fold, knows the same.
    for learner in host.learners:
        learner.fold()
    same_judgement(host, KnownPolicies(host.store, host.log), rows)


def test_what_it_has_not_seen_yet_is_no_poison(host: Host) -> None:
    topic = Topic()
    router = router_of(host, topic)
    host.follow(PolicyPut("new", PolicySpec("banker"), ["x", "y"]), KeyAdd(1, "22" * 32, 0))
    host.now_ms += 10_000  # from here on the new key signs
    host.views.choose_key()
    decision = host.recommend("new", k=1)
    host.outbox.flush()
    topic.messages = [Sent(body(decision.decision_id, decision.items[0].id, 1.0))]
    assert router.turn() == 1
    assert topic.letters == []
    host.learn()
    host.replica.poll()
    assert host.outcomes(host.views.by_name["new"].entry.number)["applied"] == 1


def test_a_store_that_was_set_back_is_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownPolicies(host.store, host.log)
    known.renew()
    assert known.applied == host.controls
    host.control(PolicyPut("new", PolicySpec("banker"), ["x"]))  # in the log; the store does not know it yet
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            host.learn()

    monkeypatch.setattr("server.router_view.time.sleep", sleep)
    known.renew()
    assert len(waited) == 3
    assert known.applied == host.controls


def test_messages_become_events_or_letters(host: Host) -> None:
    decision = host.recommend("three", k=3)
    host.outbox.flush()
    token = decision.decision_id
    a, b, c = (item.id for item in decision.items)
    one = body(token, a, 1)
    many = (
        b"[" + body(token, b, 1) + b', {"decision_id": 7},\n' + body(token, "zz", 1) + b"," + body(token, c, 0.5) + b"]"
    )
    poison: list[tuple[bytes | None, str, str | None, int | None]] = [
        (b"", "not-json", None, None),
        (None, "invalid", None, None),
        (b"{", "not-json", None, None),
        (b"[]", "invalid", None, None),
        (b"[" * 100_000, "not-json", None, None),
        (b"\xff\xfe", "not-json", None, None),
        (b'{"decision_id": "\xff", "item": "a", "reward": 1}', "not-json", None, None),
        (b"3", "invalid", None, None),
        (body(token, a, "1"), "invalid", "reward", None),
        (body(token, a, 1, cluster=3), "invalid", "cluster", None),
        (body(token, a, 1).replace(b"1}", b"NaN}"), "invalid", "reward", None),
        (body(token, a, 1e301), "out-of-range", "reward", None),
        (body(token[:-3], a, 1), "bad-token", "decision_id", None),
        (b'[{"decision_id": "x", "item": "a", "reward": 1}]', "bad-token", "decision_id", 0),
    ]
    topic = Topic([one, many, *(value for value, _, _, _ in poison), body(token, a, 1)])
    topic.messages[0] = Sent(one, key=b"user-7")
    router = router_of(host, topic)
    router.turn()
    assert topic.committed == len(topic.messages)
    letters = [letter for _, letter in topic.letters]
    found = {(each.offset, each.index): each for each in letters}
    assert len(found) == len(letters) == len(poison) + 2
    assert (found[1, 1].reason, found[1, 1].field, found[1, 1].value) == (
        "invalid",
        "decision_id",
        '{"decision_id": 7}',
    )
    assert (found[1, 2].reason, found[1, 2].field) == ("unknown-item", "item")
    for offset, (value, reason, field, index) in enumerate(poison, 2):
        letter = found[offset, index]
        assert (letter.reason, letter.field) == (reason, field), letter
        assert letter.detail.endswith("."), letter
        assert letter.size == len(value or b"") - 2 * (index is not None)
        if letter.encoding is None:
            assert letter.value is value is None
        else:
            assert letter.value is not None
            plain = letter.encoding == "utf-8"
            data = letter.value.encode() if plain else base64.b64decode(letter.value)
            assert data == (value if index is None else (value or b"")[1:-1])
    host.learn()
    host.replica.poll()
    # The last message repeats the first one: what the router takes twice counts once.
    outcomes = host.outcomes(host.views.by_name["three"].entry.number)
    assert (outcomes["applied"], outcomes["duplicate"]) == (3, 1)
    samples = {(s.name, *s.labels.values()): s.value for m in router._metrics.registry.collect() for s in m.samples}
    assert samples["croupier_router_messages_total",] == len(topic.messages)
    assert samples["croupier_router_accepted_total",] == 4
    assert samples["croupier_router_dead_letters_total",] == len(letters)
    assert samples["croupier_router_refused_total", "not-json"] == 5
    assert samples["croupier_router_lag_messages", "0"] == 0


def test_letters_stay_small_and_keep_their_key() -> None:
    row = body("x" * 4000, "a", 1)
    big = Sent(b'"' * 400_000, 1, b"k" * 300_000)

    def refuse(rows: Sequence[FeedbackRow]) -> Judged:
        assert not rows
        return [], {}

    found = sort([big, Sent(row + b"!", 2, b"user-7")], refuse)
    (no_key, first), (key, second) = found.dead
    assert (no_key, key) == (None, b"user-7")
    data = encoded(first)
    assert len(data) < router_rows.LETTER_BYTES
    letter = msgspec.json.decode(data, type=DeadLetter)
    assert (letter.value, letter.size, letter.offset) == (None, 400_000, 1)
    assert msgspec.json.decode(encoded(second), type=DeadLetter).value == (row + b"!").decode()


def test_a_list_of_a_hundred_thousand_rows(host: Host) -> None:
    decision = host.recommend("ads", k=1)
    row = body(decision.decision_id, decision.items[0].id, 1)
    topic = Topic([b"[" + b",".join([row] * 100_000) + b"]", b"[" + b",".join([b"1"] * 100_000) + b"]"])
    router = router_of(host, topic)
    before = [host.log.bounds(shard)[1] for shard in range(3)]
    router.turn()
    sizes = [
        len(record.data) for shard in range(3) for record in host.log.read(shard, before[shard], max_bytes=1 << 30)
    ]
    assert max(sizes) <= router_rows.FRAME_BYTES + events.FRAME_SIZE
    assert [letter.index for _, letter in topic.letters] == [*range(1000), None]


def test_of_a_long_list_of_nonsense_the_first_rows_get_a_letter_each_and_the_rest_one(host: Host) -> None:
    sound = host.recommend("ads", k=1, user=User(segment="s"))
    good = body(sound.decision_id, sound.items[0].id, 1.0)
    topic = Topic([b"[" + b"1," * 50_000 + good + b"]", b"[2]"])
    router = router_of(host, topic)
    router.turn()
    letters = [letter for _, letter in topic.letters]
    assert [letter.index for letter in letters] == [*range(1000), 0, None]
    assert letters[-1].detail.startswith("49,000 more rows of this list are refused, the first of them so: ")
    assert letters[-1].value is not None
    assert letters[-1].size == len(letters[-1].value) == len(good) + 100_002
    assert router._metrics.accepted._value.get() == 1


def test_slices_and_frames_hold_everything_in_order() -> None:
    messages = [Sent(bytes(size), offset) for offset, size in enumerate([0, 5 << 20, 1, 2 << 20, 3 << 20, 7])]
    cut = list(slices(messages))
    assert [message for each in cut for message in each] == messages
    assert [len(each) for each in cut] == [2, 3, 1]
    assert list(slices([])) == []
    made = [bytes([n]) * 400_000 for n in range(5)]
    found = list(frames({2: made}))
    assert [(shard, data[events.FRAME_SIZE :]) for shard, data in found] == [
        (2, b"".join(made[:2])),
        (2, b"".join(made[2:4])),
        (2, made[4]),
    ]


class Broken:
    """A log or store that fails `times` times in the calls named, then works."""

    def __init__(self, real: object, error: Exception, times: int, *names: str) -> None:
        self._real, self._error, self._names, self.times = real, error, names, times

    def __getattr__(self, name: str) -> object:
        if name in self._names and self.times:
            self.times -= 1

            def fail(*_: object, **__: object) -> object:
                raise self._error

            return fail
        return getattr(self._real, name)


def test_while_log_or_store_is_away_it_waits_and_nothing_is_lost(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.router.RETRY_S", 0.001)
    decision = host.recommend("three", k=2)
    host.outbox.flush()
    rows = [body(decision.decision_id, item.id, 1) for item in decision.items]
    topic = Topic([*rows, body("unknown", "a", 1)])
    router = router_of(host, topic)
    router._log = Broken(host.log, LogUnavailable("no log"), 3, "append")  # type: ignore[assignment]
    router._known._store = Broken(host.store, StoreUnavailable("no store"), 2, "last")  # type: ignore[assignment]
    router.turn()
    assert topic.stayed == 5
    assert (topic.committed, len(topic.letters)) == (3, 1)
    host.learn()
    host.replica.poll()
    assert host.outcomes(host.views.by_name["three"].entry.number)["applied"] == 2


def test_told_to_stop_while_the_log_is_away_it_commits_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.router.RETRY_S", 0.001)
    decision = host.recommend("ads", k=1)
    topic = Topic([body(decision.decision_id, decision.items[0].id, 1)])
    router = router_of(host, topic)
    router._log = Broken(host.log, LogUnavailable("no log"), 10**9, "append")  # type: ignore[assignment]
    monkeypatch.setattr(topic, "stay", router.stop.set)
    router.run()
    assert topic.committed == 0
