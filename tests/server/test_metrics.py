"""The scrape: every name, labels only of what exists, counters that begin at 0 and never fall."""

import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import server.plays
from server import metrics, shared
from server.learner_loop import LearnerLoop
from server.learner_metrics import LearnerMetrics
from server.metric_table import LEARNER, METRICS, ROUTER, SERVER
from server.router_metrics import RouterMetrics
from server.schemas import User
from server.shared import HostFile, Row, RunFolder
from streaming.contract import OUTCOMES
from streaming.control import PolicyDelete, PolicyPut, PolicySpec
from streaming.counts import COMMIT_S, Counts
from streaming.log.memory import MemoryLog
from streaming.store.memory import MemoryStore
from tests.server.host_parts import Host, random_graph

BANK = PolicySpec("banker")


def scrape(host: Host) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    figures = metrics.Figures(host.log.ends()[:-1], host.log.size_bytes(), host.store.size_bytes())
    text = metrics.render(host.host, host.replica, figures, host.now_ms).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path, shards=2)
    host.follow(PolicyPut("h", BANK, ["a", "b"]))
    host.diag("films", random_graph())
    return host


def test_counters_begin_at_0_for_every_label_known(host: Host) -> None:
    found = scrape(host)
    for policy in ("h", "films", "unknown"):
        for outcome in OUTCOMES:
            assert value(found, "croupier_reward_outcomes_total", policy=policy, outcome=outcome) == 0
        for mode in ("explore", "exploit", "thompson"):
            assert value(found, "croupier_decisions_total", policy=policy, mode=mode) == 0
    for reason in shared.REASONS:
        assert value(found, "croupier_refusals_total", reason=reason) == 0
    for process in ("worker", "agent", "learner"):
        assert value(found, "croupier_restarts_total", process=process) == 0
    assert value(found, "croupier_request_seconds_count", route="/v1/feedback", outcome="2xx") == 0


def test_what_happened_is_counted_once(host: Host) -> None:
    decision = host.recommend("h")
    films = host.recommend("films", user=User(clusters=[1, 2]), k=3, mode="exploit")
    for _ in range(3):
        host.reward(decision, decision.items[0].id, 1.0)
    host.reward(films, films.items[1].id, 2.0)
    host.reward(films, "no such", 2.0)
    host.row.request("/v1/recommend", 200, 0.00015)
    host.row.request("/v1/recommend", 200, 30.0)
    host.row.request("/some/thing", 404, 0.001)
    host.follow()
    found = scrape(host)
    assert value(found, "croupier_decisions_total", policy="h", mode="explore") == 1
    assert value(found, "croupier_decisions_total", policy="films", mode="exploit") == 1
    assert value(found, "croupier_reward_outcomes_total", policy="h", outcome="applied") == 1
    assert value(found, "croupier_reward_outcomes_total", policy="h", outcome="duplicate") == 2
    assert value(found, "croupier_reward_outcomes_total", policy="films", outcome="applied") == 1
    assert value(found, "croupier_refusals_total", reason="unknown-item") == 1
    latency = {"route": "/v1/recommend", "outcome": "2xx"}
    assert value(found, "croupier_request_seconds_bucket", le="0.0001", **latency) == 0
    assert value(found, "croupier_request_seconds_bucket", le="0.0002", **latency) == 1
    assert value(found, "croupier_request_seconds_bucket", le="+Inf", **latency) == 2
    assert value(found, "croupier_request_seconds_sum", **latency) == pytest.approx(30.00015, rel=1e-6)
    assert value(found, "croupier_request_seconds_count", route="unknown", outcome="4xx") == 1
    assert value(found, "croupier_distinct_items_shown", policy="films") == 3
    assert value(found, "croupier_distinct_items_shown", policy="h") == 1
    assert value(found, "croupier_banks", policy="h") == 3  # a shared one in each shard, and that of "all"
    assert value(found, "croupier_bank_balance", policy="h") >= 3 * 2
    assert 0 < value(found, "croupier_arms_entropy", policy="h") <= 0.6932
    assert value(found, "croupier_visible_seconds_count") > 0


def test_lag_and_staleness_while_nobody_learns(host: Host) -> None:
    assert value(scrape(host), "croupier_learner_lag_records", shard="0") == 0
    for _ in range(4):
        decision = host.recommend("h")
        host.reward(decision, decision.items[0].id, 1.0)
    host.outbox.flush()
    host.now_ms += 7_000
    found = scrape(host)
    behind = [value(found, "croupier_learner_lag_records", shard=str(shard)) for shard in range(2)]
    assert sum(behind) == 5  # four rewards, one batch of decisions
    stale = [value(found, "croupier_replica_staleness_seconds", shard=str(shard)) for shard in range(2)]
    assert [age > 0 for age in stale] == [records > 0 for records in behind]
    assert max(stale) == 7.0


def test_what_is_gone_is_unknown_and_sums_never_fall(host: Host) -> None:
    for _ in range(5):
        host.reward(host.recommend("h"), "a", 1.0)
    host.follow()
    before = scrape(host)
    host.follow(PolicyDelete("h"))
    after = scrape(host)
    assert not [key for key in after if ("policy", "h") in key[1]]

    def total(found: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str) -> float:
        return sum(count for (each, _), count in found.items() if each == name)

    for name in ("croupier_decisions_total", "croupier_reward_outcomes_total"):
        assert total(after, name) == total(before, name)
    assert value(after, "croupier_decisions_total", policy="unknown", mode="explore") == 5


def test_a_row_outlives_its_process(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, tmp_path)
    HostFile.create(folder, 2)
    for _ in range(3):  # three incarnations
        row = HostFile(folder.host).row(1)
        row.keep_policies([4, 9])
        row.decided(9, 2)
        row.refusal("bad-token")
    row = HostFile(folder.host).row(1)
    assert row.decisions() == {0: [0, 0, 0], 4: [0, 0, 0], 9: [0, 0, 3]}
    assert row.refusals()[0] == 3
    assert HostFile(folder.host).row(0).refusals()[0] == 0


def test_more_policies_than_entries_share_the_unknown_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, tmp_path)
    row: Row = HostFile.create(folder, 1).row(0)
    row.keep_policies(range(1, 1000))
    row.decided(1, 0)
    row.decided(999, 0)
    assert row.decisions()[1] == [1, 0, 0]
    assert row.decisions()[0] == [1, 0, 0]
    row.keep_policies([999])
    assert row.decisions() == {0: [2, 0, 0], 999: [0, 0, 0]}


def test_every_metric_of_a_server_is_shown_and_described(host: Host) -> None:
    shown = set()
    for name, _ in scrape(host):
        base = name if name in METRICS else re.sub(r"_(bucket|count|sum)$", "", name)
        shown.add(base)
    apart = {"croupier_learner_up", "croupier_learner_shards", "croupier_learner_rebalances_total"}
    described = {each.name for each in SERVER} | {each.name for each in LEARNER} - apart
    assert shown == described


def test_every_metric_of_a_learner_and_a_router_is_shown_and_described() -> None:
    metrics = LearnerMetrics()
    metrics.loop = LearnerLoop(MemoryLog(1), MemoryStore())
    for registry, table in ((metrics.registry, LEARNER), (RouterMetrics().registry, ROUTER)):
        found = {f"{each.name}_total" if each.type == "counter" else each.name: each for each in registry.collect()}
        assert {name: (each.type, each.documentation) for name, each in found.items()} == {
            each.name: (each.kind, each.says) for each in table
        }


def test_what_people_did_is_shown_by_mode(host: Host) -> None:
    explored = host.recommend("h", k=2)
    host.now_ms += 5_000
    host.reward(explored, explored.items[0].id, 1.0)
    exploited = host.recommend("films", user=User(clusters=[1, 2]), k=3, mode="exploit")
    host.reward(exploited, exploited.items[1].id, 0.25)
    host.follow()
    found = scrape(host)
    shown = {"policy": "h", "mode": "explore"}
    assert value(found, "croupier_items_shown_total", **shown) == 2
    assert value(found, "croupier_items_answered_total", **shown) == 1
    assert value(found, "croupier_reward_sum", **shown) == 1.0
    assert value(found, "croupier_reward_sum", policy="films", mode="exploit") == 0.25
    assert value(found, "croupier_items_shown_total", policy="films", mode="explore") == 0
    delay = "croupier_reward_delay_seconds"
    assert value(found, f"{delay}_bucket", policy="h", le="3") == 0
    assert value(found, f"{delay}_bucket", policy="h", le="10") == 1
    assert value(found, f"{delay}_sum", policy="h") == 5.0
    assert value(found, "croupier_answers_kept", shard="0") + value(found, "croupier_answers_kept", shard="1") == 2
    assert value(found, "croupier_items", policy="h") == 2
    assert value(found, "croupier_bank_learning_rate", policy="h") == pytest.approx(0.5)


def test_plays_of_fresh_items_are_counted_from_the_first_look_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.plays, "FRESH_PLAYS", 5)
    plays = server.plays.Plays()
    number = host.views.by_name["h"].entry.number

    def play() -> tuple[float, float]:
        host.recommend("h", k=1)
        host.follow()
        plays.look(host.replica)
        return plays.counts(number)

    assert play() == (0.0, 0.0)
    for _ in range(30):
        found = play()
    policy = host.replica.policy("h")
    assert policy is not None
    _, each = server.plays.plays_of(host.replica, policy)
    assert found == (30.0, float(np.minimum(each, 5).sum()) - 1)
    host.follow(PolicyPut("h", BANK, ["a", "b", "c"]))
    assert play()[0] == 31.0


def test_what_the_host_s_own_learner_did_is_shown(host: Host) -> None:
    counts = Counts(records=5, events=9, commits=[0, 2, *[0] * (len(COMMIT_S) - 1)], commit_s=0.001, refused=1)
    host.host.learned(counts, stopped=2)
    found = scrape(host)
    assert value(found, "croupier_learner_commit_seconds_count") == 2
    assert value(found, "croupier_learner_commit_seconds_sum") == pytest.approx(0.001)
    assert value(found, "croupier_learner_events_total") == 9
    assert value(found, "croupier_learner_refused_commits_total") == 1
    assert value(found, "croupier_learner_shards_stopped") == 2
    host.row.hot()
    assert value(scrape(host), "croupier_hot_requests_total") == 1


def test_learners_that_run_elsewhere_are_no_part_of_this_server(host: Host) -> None:
    assert value(scrape(host), "croupier_up", part="learner") == 0
    host.host[shared.APART] = 1
    assert {key[1] for key in scrape(host) if key[0] == "croupier_up"} == {
        (("part", part),) for part in ("log", "store", "agent")
    }
