"""Decisions and rewards of one worker: what is chosen, what is signed, what goes to which shard, what is refused."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from server import shared
from server.errors import Problem
from server.feedback import judge
from server.outbox import Outbox
from server.recommender import STREAM_MAX_MS
from server.schemas import FeedbackRow, User
from server.shared import LOG_TIME
from server.view_arms import ArmsView
from server.view_diag import DiagView
from server.views import KEY_REST_MS, Views
from streaming import events, token
from streaming.control import (
    DIAG_LINUCB,
    GraphPut,
    ItemDelete,
    ItemPut,
    KeyAdd,
    PolicyDelete,
    PolicyPut,
    PolicySpec,
    RewardContract,
)
from streaming.shards import shard_of_bank, shard_of_item
from tests.server.host_parts import Host, random_graph

BANK = PolicySpec("banker", max_segments=4)
USER = User(embedding=[1.0, 0.5, -0.2, 0.1])


def context_of(host: Host, decision_id: str) -> token.Context:
    return token.decode(token.verify(decision_id, host.views.keys))


def payloads(host: Host) -> dict[int, list[bytes]]:
    """Events sent so far by shard."""
    found: dict[int, list[bytes]] = {}
    for shard, count, data in host.sent:
        at = 0
        for _ in range(count):
            size = int.from_bytes(data[at + 4 : at + 6], "little") * 8
            found.setdefault(shard, []).append(data[at : at + size])
            at += size
    return found


@pytest.fixture
def films(tmp_path: Path) -> Host:
    host = Host(tmp_path, shards=3)
    host.diag("films", random_graph(), clusters_per_user=5)
    return host


@pytest.fixture
def headlines(tmp_path: Path) -> Host:
    host = Host(tmp_path, shards=3)
    host.follow(PolicyPut("h", BANK, ["a", "b", "c"]))
    return host


def test_the_token_holds_what_was_answered(films: Host) -> None:
    decision = films.recommend("films", user=USER, k=4)
    context = context_of(films, decision.decision_id)
    view = films.views.by_name["films"]
    assert isinstance(view, DiagView)
    numbers = dict(zip(view.ids, view.numbers.tolist(), strict=True))
    assert [numbers[item.id] for item in decision.items] == context.items.tolist()
    assert (context.policy, context.lineage, context.time_ms) == (2, 3, films.now_ms)
    assert (context.window_ms, context.default, context.aggregation) == (1_800_000, 0.0, token.FIRST)
    assert len(context.clusters) == 5
    answered = [np.nan if item.propensity is None else item.propensity for item in decision.items]
    np.testing.assert_allclose(context.propensities, answered, rtol=1e-3)


def test_each_shard_that_owns_an_item_gets_the_event_once_numbered_from_0(films: Host) -> None:
    owners: Counter[int] = Counter()
    for _ in range(50):
        context = context_of(films, films.recommend("films", user=USER, k=2).decision_id)
        owners.update({shard_of_item(2, int(number), 3) for number in context.items})
    films.outbox.flush()
    sent = payloads(films)
    assert {shard: len(each) for shard, each in sent.items()} == dict(owners)
    for each in sent.values():
        assert [int.from_bytes(event[24:28], "little") for event in each] == list(range(len(each)))
    films.follow()
    assert films.outcomes(2) == {"decisions_explore": 50}  # once each, however many shards it concerns


def test_rewards_reach_the_shard_of_their_item(films: Host) -> None:
    for _ in range(20):
        decision = films.recommend("films", user=USER, k=3)
        for item in decision.items:
            assert films.reward(decision, item.id, 1.0).status == "accepted"
            assert films.reward(decision, item.id, 1.0).status == "accepted"
    films.follow()
    outcomes = films.outcomes(2)
    assert (outcomes["applied"], outcomes["duplicate"]) == (60, 60)
    assert "gone" not in outcomes


def test_a_bank_is_made_for_each_segment_and_then_shared(headlines: Host) -> None:
    banks = []
    for i in range(12):
        decision = headlines.recommend("h", user=User(segment=f"s{i}"))
        banks.append(context_of(headlines, decision.decision_id).bank)
        headlines.reward(decision, decision.items[0].id, 1.0)
        headlines.follow()
    own = [bank for bank in banks if bank]
    room = -(-4 // 3)  # of each shard
    assert max(Counter(shard_of_bank(2, bank, 3) for bank in own).values()) <= room
    assert 0 in banks
    again = context_of(headlines, headlines.recommend("h", user=User(segment="s0")).decision_id)
    assert again.bank == banks[0] == token.segment_key("s0")
    assert headlines.outcomes(2)["applied"] == 12
    names = [name for shard in headlines.replica.shards for name in shard.state["bank_names/2"][:, 0].tolist() if name]
    assert b"s0" in names


def test_a_restricted_draw_is_renormalised_and_not_learned(headlines: Host) -> None:
    for query in ({"exclude": ["a"]}, {"candidates": ["b", "c", "no such"]}):
        decision = headlines.recommend("h", **query)
        assert decision.items[0].id in ("b", "c")
        assert decision.items[0].propensity == pytest.approx(0.5)
        assert not context_of(headlines, decision.decision_id).funded
        headlines.reward(decision, decision.items[0].id, 1.0)
    headlines.follow(ItemPut("h", "a", paused=True))
    decision = headlines.recommend("h")
    assert decision.items[0].id in ("b", "c")
    assert decision.items[0].propensity == pytest.approx(0.5)
    assert context_of(headlines, decision.decision_id).funded  # a paused arm is renormalised away; the others learn on
    assert headlines.outcomes(2)["unfunded"] == 2
    headlines.follow(ItemPut("h", "a"), ItemDelete("h", "b"))
    context = context_of(headlines, headlines.recommend("h", k=2).decision_id)
    assert context.funded  # a removed arm is renormalised away
    assert set(context.items.tolist()) == {0, 2}


def test_exclude_and_candidates_of_a_graph(films: Host) -> None:
    all_items = films.recommend("films", user=USER, k=10).items
    first = [item.id for item in all_items[:3]]
    left = films.recommend("films", user=USER, k=10, exclude=[*first, "long gone"]).items
    assert not set(first) & {item.id for item in left}
    only = films.recommend("films", user=USER, k=5, candidates=[*first, "long gone"]).items
    assert {item.id for item in only} == set(first)
    films.follow(ItemPut("films", first[0], paused=True))
    only = films.recommend("films", user=USER, k=5, candidates=first).items
    assert {item.id for item in only} == set(first[1:])


def test_mode_overrides_the_policys(films: Host, tmp_path: Path) -> None:
    for mode, code in (("explore", 0), ("exploit", 1), ("thompson", 2)):
        decision = films.recommend("films", user=USER, mode=mode)
        assert context_of(films, decision.decision_id).mode == code
    host = Host(tmp_path / "other")
    host.follow(PolicyPut("t", PolicySpec("thompson-beta"), ["a", "b"]))
    assert context_of(host, host.recommend("t").decision_id).mode == 2
    assert context_of(host, host.recommend("t", mode="exploit").decision_id).mode == 1
    assert films.row.decisions()[2] == [1, 1, 1]


def test_the_same_seed_chooses_the_same(tmp_path: Path) -> None:
    def run(name: str) -> list[str]:
        host = Host(tmp_path / name, seed=5)
        host.diag("films", random_graph())
        host.follow(PolicyPut("h", BANK, ["a", "b", "c"]))
        return [host.recommend(p, user=u).items[0].id for _ in range(30) for p, u in (("films", USER), ("h", User()))]

    assert run("one") == run("two")


REFUSED: list[tuple[str, dict[str, object], int, str]] = [
    ("no such", {}, 404, "policy"),
    ("films", {}, 422, "user"),
    ("films", {"user": User(segment="x")}, 422, "user"),
    ("films", {"user": User(embedding=[1.0])}, 422, "user.embedding"),
    ("films", {"user": User(embedding=[1e300, 0.0, 0.0, 0.0])}, 422, "user.embedding"),
    ("films", {"user": User(clusters=[3, 12])}, 422, "user.clusters[1]"),
    ("films", {"user": USER, "k": 41}, 422, "k"),
    ("films", {"user": USER, "candidates": []}, 422, "candidates"),
    ("films", {"user": USER, "candidates": ["no such"]}, 422, "candidates"),
    ("films", {"user": USER, "exclude": list(random_graph().ids)}, 422, "exclude"),
    ("h", {"user": USER}, 422, "user.embedding"),
    ("h", {"user": User(clusters=[1])}, 422, "user.clusters"),
    ("h", {"k": 4}, 422, "k"),
    ("h", {"mode": "thompson"}, 422, "mode"),
    ("h", {"candidates": ["no such"]}, 422, "candidates"),
    ("h", {"exclude": ["a", "b", "c"]}, 422, "exclude"),
    ("bare", {"user": USER}, 409, "policy"),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Host:
    host = Host(tmp_path_factory.mktemp("both"))
    host.diag("films", random_graph())
    host.follow(PolicyPut("h", BANK, ["a", "b", "c"]), PolicyPut("bare", PolicySpec(DIAG_LINUCB)))
    return host


@pytest.mark.parametrize(("policy", "query", "status", "field"), REFUSED)
def test_what_cannot_be_chosen_names_the_field(
    both: Host, policy: str, query: dict[str, object], status: int, field: str
) -> None:
    both.outbox.flush()
    sent = len(both.sent)
    with pytest.raises(Problem) as caught:
        both.recommend(policy, **query)
    assert (caught.value.status, caught.value.field) == (status, field)
    both.outbox.flush()
    assert len(both.sent) == sent  # nothing half-done


def test_weights_are_shares_whatever_their_scale(both: Host) -> None:
    for scale in (1e-300, 1.0, 1e300):
        decision = both.recommend("films", user=User(clusters=[4, 2], weights=[3 * scale, 1 * scale]))
        assert context_of(both, decision.decision_id).weights.tolist() == [49151, 16384]


def test_a_clock_that_went_back_does_not_make_every_reward_late(headlines: Host) -> None:
    """The log's time stands still meanwhile, and a decision is never stamped before it."""
    newest = headlines.clock() + 7_200_000
    headlines.host[LOG_TIME] = newest
    decision = headlines.recommend("h")
    assert context_of(headlines, decision.decision_id).time_ms == newest


def test_all_arms_paused(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.follow(PolicyPut("h", BANK, ["a"]), ItemPut("h", "a", paused=True))
    with pytest.raises(Problem, match="no arm") as caught:
        host.recommend("h")
    assert caught.value.status == 409


def test_a_worker_without_a_catalog_is_not_ready(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.host[shared.GENERATION] = 0
    with pytest.raises(Problem) as caught:
        Views(host.host, host.row, host.folder).view("h")
    assert caught.value.status == 503


# -------------------------------------------------------------------------------- feedback


def altered(text: str) -> str:
    return text[:-1] + ("A" if text[-1] != "A" else "B")


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        (lambda d: FeedbackRow(altered(d), "a", 1.0), "bad-token", "decision_id"),
        (lambda _: FeedbackRow("", "a", 1.0), "bad-token", "decision_id"),
        (lambda _: FeedbackRow("nonsense", "a", 1.0), "bad-token", "decision_id"),
        (lambda d: FeedbackRow(d, "no such", 1.0), "unknown-item", "item"),
        (lambda d: FeedbackRow(d, "a", 2e300), "out-of-range", "reward"),
        (lambda d: FeedbackRow(d, "a", float("nan")), "out-of-range", "reward"),
    ],
)
def test_what_is_refused_before_the_log(both: Host, row: Callable[[str], FeedbackRow], reason: str, field: str) -> None:
    decision = both.recommend("h", k=3)
    before = both.row.refusals()
    (verdict,), by_shard = judge([row(decision.decision_id)], both.views, both.row)
    assert (verdict.status, verdict.reason, verdict.field) == ("refused", reason, field)
    assert verdict.detail
    assert by_shard == {}
    added = [now - then for now, then in zip(both.row.refusals(), before, strict=True)]
    assert added == [int(each == reason) for each in shared.REASONS]


def test_one_bad_row_does_not_hold_up_the_others(both: Host) -> None:
    decision = both.recommend("h", k=2)
    rows = [FeedbackRow(decision.decision_id, item.id, 1.0) for item in decision.items]
    rows.insert(1, FeedbackRow("x", "a", 1.0))
    verdicts, by_shard = judge(rows, both.views, both.row)
    assert [verdict.status for verdict in verdicts] == ["accepted", "refused", "accepted"]
    assert sum(map(len, by_shard.values())) == 2


def test_sums_need_an_event_id(tmp_path: Path) -> None:
    host = Host(tmp_path)
    spec = PolicySpec("thompson-normal", RewardContract(aggregation="sum"))
    host.follow(PolicyPut("s", spec, ["a"]))
    decision = host.recommend("s")
    assert host.reward(decision, "a", 1.0).reason == "missing-event-id"
    for event_id in ("x", "y", "x"):
        assert host.reward(decision, "a", 1.0, event_id).status == "accepted"
    host.follow()
    assert {k: v for k, v in host.outcomes(2).items() if not k.startswith("dec")} == {
        "applied": 1,
        "amended": 1,
        "duplicate": 1,
    }


def test_rewards_for_what_is_gone(films: Host) -> None:
    """A removed item, a new cluster numbering: accepted and counted as gone. A removed policy: refused."""
    decision = films.recommend("films", user=USER, k=2)
    removed = decision.items[0].id
    smaller = random_graph().without_item(removed)
    films.follow(GraphPut("films", films.store.put_blob(smaller.to_bytes()), keeps_clusters=True))
    assert films.reward(decision, removed, 1.0).status == "accepted"
    assert films.reward(decision, decision.items[1].id, 1.0).status == "accepted"
    films.follow()
    assert films.outcomes(2)["gone"] == 1
    assert films.outcomes(2)["applied"] == 1
    films.follow(GraphPut("films", films.store.put_blob(smaller.to_bytes())))
    assert films.reward(decision, decision.items[1].id, 1.0).status == "accepted"
    films.follow()
    assert films.outcomes(2)["gone"] == 2
    films.follow(PolicyDelete("films"))
    assert films.reward(decision, decision.items[1].id, 1.0).reason == "unknown-policy"


def test_an_arm_that_came_back_has_another_number(headlines: Host) -> None:
    decision = headlines.recommend("h", k=3)
    headlines.follow(ItemDelete("h", "a"), ItemPut("h", "a"))
    view = headlines.views.by_name["h"]
    assert isinstance(view, ArmsView)
    assert list(view.numbers_of("a")) == [0, 3]
    assert headlines.reward(decision, "a", 1.0).status == "accepted"
    headlines.follow()
    outcomes = headlines.outcomes(2)
    assert outcomes.get("gone", 0) + outcomes.get("unfunded", 0) == 1


# ------------------------------------------------------------------------------------------------- keys and streams


def test_a_new_key_verifies_at_once_and_signs_after_a_rest(both: Host) -> None:
    old = both.recommend("h").decision_id
    both.follow(KeyAdd(1, "22" * 32, both.now_ms))
    assert token.verify(both.recommend("h").decision_id, both.views.keys)[1] == 0
    both.now_ms += KEY_REST_MS
    both.views.choose_key()
    new = both.recommend("h").decision_id
    assert token.verify(new, both.views.keys)[1] == 1
    assert token.verify(old, both.views.keys)[1] == 0


def test_streams_are_begun_anew_before_they_wrap_or_age(both: Host) -> None:
    def decision() -> int:
        return context_of(both, both.recommend("h").decision_id).decision

    both.recommender._sequence = (1 << 32) - 1
    last, first = decision(), decision()
    assert last & 0xFFFFFFFF == 0xFFFFFFFF
    assert first & 0xFFFFFFFF == 0
    assert last >> 32 != first >> 32
    both.now_ms += STREAM_MAX_MS + 1
    assert decision() >> 32 != first >> 32
    both.outbox.flush()
    both.learn()


def test_the_outbox_keeps_what_is_not_confirmed_and_is_bounded(both: Host) -> None:
    sent: list[int] = []
    outbox = Outbox(both.row, 0.01, lambda _seconds, _call: None, kept_bytes_max=200)
    event = events.decision(b"x" * 64, 0)
    outbox.add(0, event)
    outbox.flush()  # nobody there
    outbox.add(1, event)

    def send(number: int, batch: bytes) -> bool:
        assert batch
        sent.append(number)
        return True

    outbox.send = send
    outbox.flush()
    outbox.resend()
    assert sent == [2, 1, 2]
    before = both.row[shared.DROPPED]
    outbox.add(0, event)
    outbox.add(0, event, counted=False)
    assert both.row[shared.DROPPED] == before + 1
    outbox.confirmed(1)
    outbox.add(0, event)
    assert both.row[shared.DROPPED] == before + 1
    outbox.confirmed(2)
    outbox.flush()
    assert (sent, len(outbox)) == ([2, 1, 2, 3], 1)


def test_a_gap_in_the_stream_is_counted_as_lost(headlines: Host) -> None:
    headlines.recommend("h")
    headlines.outbox.flush()
    headlines.recommend("h")
    headlines.outbox.fill[0] = 0  # as if the process had died here, but for its stream
    headlines.recommend("h")
    headlines.follow()
    assert headlines.outcomes(0) == {"decisions_lost": 1}
