"""The scrape: every name, labels only of what exists, counters that begin at 0 and never fall."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import metrics, shared
from server.schemas import User
from server.shared import HostFile, Row, RunFolder
from streaming.contract import OUTCOMES
from streaming.control import PolicyDelete, PolicyPut, PolicySpec
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


def test_every_metric_stands_in_the_modules_table(host: Host) -> None:
    names = {name for name, _ in scrape(host)}
    assert metrics.__doc__ is not None
    documented = {
        word.strip("`").split("`")[0] for word in metrics.__doc__.replace("| ", " ").split() if "croupier_" in word
    }
    for name in names:
        base = name
        for suffix in ("_bucket", "_count", "_sum", "_created"):
            base = base.removesuffix(suffix)
        assert any(base == each or base in each for each in documented), name


def test_learners_that_run_elsewhere_are_no_part_of_this_server(host: Host) -> None:
    assert value(scrape(host), "croupier_up", part="learner") == 0
    host.host[shared.APART] = 1
    assert {key[1] for key in scrape(host) if key[0] == "croupier_up"} == {
        (("part", part),) for part in ("log", "store", "agent")
    }
