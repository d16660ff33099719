"""What must hold when a run is over, everything is healed and nothing is under way any more.

Every check returns sentences of what is wrong; none means that it holds. They look at everything that the team has said
since it began, not only in its last run.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
from kafka import KafkaConsumer, TopicPartition

from streaming.contract import COLUMNS, OUTCOMES
from streaming.control import Restore, SnapshotTake, from_json, snapshot_label
from streaming.errors import StoreUnavailable
from streaming.log import CONTROL
from streaming.place import Place, live, state_of
from streaming.replay import BATCHES, replay
from streaming.shard import Shard
from streaming.state import State
from tests.faults.load import Answer, Ledger, payload_of
from tests.faults.site import FLUSH_MS, SHARDS, Team
from tests.faults.tail import Tail
from tests.faults.troubles import Happened
from tests.parts.host import wait_for
from tests.parts.kafka import client
from tests.streaming.test_exactly_once import check_against_twin

CATCH_UP_S = 60.0
SLACK_S = 1.0  # beyond the flush window: what a starved process may add before it hands a decision over
RETURN_S = 10.0  # a server that was started is back, and nothing is said to be away any more
SILENCE_S = 5.0  # what is away for longer must be said
LOG_TROUBLES = {"broker killed", "broker stopped", "log away"}
LOG_AWAY, STORE_AWAY, AGENT_AWAY = "The event log is away", "The parameter store is away", "The agent is away"
STORE_TROUBLES = {"master killed", "network", "store away"}


class Counts(NamedTuple):
    """What the log and the parameters hold."""

    records: int
    rewards: int
    decisions: int
    outcomes: Counter[str]


def settled(team: Team, tail: Tail, ledger: Ledger) -> float:
    """Waits until what was sent to the router is in the log, and the log is learned; seconds it took."""
    began = time.monotonic()

    def quiet() -> bool:
        if any(tail.rewards[reward] < 1 for reward in list(ledger.routed)):
            return False
        try:
            heads = [head for _, head in team.store.lasts()]
        except StoreUnavailable:
            return False
        return heads == tail.heads() == tail.ends()

    try:
        wait_for(quiet, "all is learned", CATCH_UP_S)
        time.sleep(0.3)
        wait_for(quiet, "all is learned", CATCH_UP_S)
    except AssertionError:
        missing = {reward.payload for reward in list(ledger.routed) if tail.rewards[reward] < 1}
        raise AssertionError(
            f"not within {CATCH_UP_S:g} s: log ends {tail.ends()}, read {tail.heads()}, learned "
            f"{[head for _, head in team.store.lasts()]}; {tail.failure!r}; {len(missing)} rewards of the router's "
            f"topic are not in the log: {list(_sent(team, missing))}; {list(letters(team, ledger))}"
        ) from None
    return time.monotonic() - began


def _sent(team: Team, payloads: set[bytes]) -> Iterator[str]:
    """Where in the router's topic the rewards of these decisions are."""
    for record in _all_of(team, f"{team.name}.rewards"):
        row = json.loads(record.value)
        if payload_of(row.get("decision_id", "")) in payloads:
            yield f"{record.partition}:{record.offset} at {record.timestamp}"


def _all_of(team: Team, topic: str) -> Iterator[Any]:
    """The records of all partitions of a topic."""
    settings: dict[str, Any] = {"enable_auto_commit": False, "auto_offset_reset": "earliest"}
    with client(KafkaConsumer(bootstrap_servers=team.site.broker.bootstrap, **settings)) as consumer:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for records in consumer.poll(500).values():
                yield from records


def healthy(team: Team) -> Iterator[str]:
    """After a while nothing is said to be away."""
    for server in team.servers:
        try:
            wait_for(lambda server=server: not server.degraded(), "", RETURN_S, 0.1)  # type: ignore[misc]
        except AssertionError:
            yield f"server {server.number} still says {server.degraded()}"


def rewards_in_log(tail: Tail, ledger: Ledger) -> Iterator[str]:
    """What was acknowledged is in the log, and nothing else."""
    lost = Counter({each: n - tail.rewards[each] for each, n in (ledger.acknowledged + ledger.routed).items()})
    if lost := +lost:
        yield f"{lost.total()} acknowledged rewards are not in the log, the first is {next(iter(lost))}"
    told = ledger.acknowledged + ledger.doubtful
    extra = Counter({each: n - told[each] for each, n in tail.rewards.items() if each not in ledger.offered})
    if extra := +extra:
        yield f"{extra.total()} rewards in the log are more than was sent, the first is {next(iter(extra))}"


def letters(team: Team, ledger: Ledger) -> Iterator[str]:
    """Every poisonous message is among the dead letters, and no reward is."""
    found = Counter(json.loads(record.value)["value"] for record in _all_of(team, f"{team.name}.dead-letters"))
    if missing := set(ledger.poison) - found.keys():
        yield f"{len(missing)} poisonous messages are not among the dead letters: {sorted(missing)[:3]}"
    if strange := [value for value in found if '"no reward"' not in (value or "")]:
        yield f"{len(strange)} rewards are among the dead letters: {strange[:3]}"


def parameters(team: Team, tail: Tail) -> tuple[list[str], Counter[str]]:
    """The parameters equal a plain replay, bit for bit, and the slow twin; outcomes of all shards together."""
    wrong: list[str] = []
    total: Counter[str] = Counter()
    seen = _Seen(team, tail)
    for shard in range(tail.shards):
        stored = state_of(team.store.load(shard))
        if differing := stored.equal(replayed(team, tail, shard)):
            wrong.append(f"shard {shard}: {differing} in the store are not what a replay gives")
        outcomes = outcomes_of(stored)
        total += outcomes
        counted = sum(outcomes[name] for name in OUTCOMES if name != "poison")
        if counted != tail.rewards_of[shard]:
            wrong.append(f"shard {shard}: {counted} outcomes for {tail.rewards_of[shard]} rewards in the log")
        try:
            check_against_twin(seen, shard, stored)
        except AssertionError as error:
            wrong.append(f"shard {shard} differs from the slow twin: {str(error)[:500]}")
    return wrong, total


def operators_replay(team: Team) -> Iterator[str]:
    """What `croupier replay` says: from the oldest snapshot kept, while learners and servers run."""
    report = replay(Place(team.log_url, team.store_url))
    if not report.equal:
        yield "\n".join(report.lines())


class _Seen:
    """What `check_against_twin` asks of a simulation."""

    def __init__(self, team: Team, tail: Tail) -> None:
        self.n_shards, self.store, self.records = tail.shards, team.store, tail.records.__getitem__
        self.rewards_logged = tail.rewards_of
        self.restored = restored(team, tail)


def restored(team: Team, tail: Tail) -> dict[int, list[int]]:
    """Number of each control record that restored a policy -> how much of each shard its snapshot had learned."""
    heads = [{info.label: info.head for info in team.store.snapshots(shard) if info.label} for shard in range(SHARDS)]
    taken: dict[str, int] = {}
    found = {}
    for number, made, _ in live(record.data for record in tail.records[CONTROL]):
        record = from_json(made)
        if isinstance(record, SnapshotTake):
            taken.setdefault(record.label, number)
        elif isinstance(record, Restore):
            label = snapshot_label(record.label, taken[record.label])
            found[number] = [shard[label] for shard in heads]
    return found


def replayed(team: Team, tail: Tail, shard: int) -> State:
    """A plain replay of all of the shard's log in this process, by batches that no learner takes."""
    state = State()
    machine = Shard(shard, tail.shards, state, team.store.get_blob)
    records, at = tail.records[shard], 0
    for size in itertools.cycle(BATCHES):
        if at >= len(records):
            return state
        machine.step(records[at : at + size])
        state.take_delta()
        at += size
    raise AssertionError


def outcomes_of(state: State) -> Counter[str]:
    total: Counter[str] = Counter()
    for name in state.tables:
        if name.startswith("outcomes/"):
            total.update(dict(zip(COLUMNS, state[name][0].tolist(), strict=True)))
    return total


def answers(ledger: Ledger, happened: list[Happened]) -> Iterator[str]:
    """Recommending is always answered with 200, feedback with 202 or 503, but by a server that was killed."""
    wrong: Counter[tuple[int, str, int, str]] = Counter()
    for each in ledger.answers:
        allowed = {"recommend": {200}, "feedback": {202, 503}}[each.route]
        if each.status in allowed:
            continue
        if each.status in (0, 503) and was_killed(happened, each):
            continue
        wrong[each.server, each.route, each.status, each.detail] += 1
    for (server, route, status, detail), n in wrong.most_common(5):
        yield f"server {server} answered {route} with {status} {n} times: {detail}"
    if ledger.retry_after_missing:
        yield f"{ledger.retry_after_missing} answers of 503 had no Retry-After"


def was_killed(happened: list[Happened], answer: Answer) -> bool:
    """Whether the server, or its worker, was killed before it answered, and may not have been back."""
    return any(
        each.name in ("server killed", "worker killed")
        and each.note == f"server {answer.server}"
        and each.began - 0.5 <= answer.at
        and answer.at - answer.took <= each.ended + RETURN_S
        for each in happened
    )


def lost_decisions(tail: Tail, ledger: Ledger, happened: list[Happened]) -> tuple[list[str], int]:
    """Decisions are lost only where a worker or a server was killed, and only its newest."""
    lost = [each for each in ledger.decisions if each.number not in tail.decisions]
    wrong = []
    for each in lost:
        near = [
            kill
            for kill in happened
            if kill.name in ("server killed", "worker killed")
            and kill.note == f"server {each.server}"
            and _waiting_since(kill, happened) - FLUSH_MS / 1000 - SLACK_S <= each.at <= kill.ended + SLACK_S
        ]
        if not near:
            wrong.append(f"a decision of server {each.server} at {each.at:.2f} is not in the log")
    return ([f"{wrong[0]} (and {len(wrong) - 1} more)"] if wrong else []), len(lost)


def _waiting_since(kill: Happened, happened: list[Happened]) -> float:
    """Since when decisions had waited that a kill lost: while the log is away they all do."""
    away = [
        each.began
        for each in happened
        if each.name in LOG_TROUBLES and each.began <= kill.began <= each.ended + RETURN_S
    ]
    return min([kill.began, *away])


def truth(ledger: Ledger, happened: list[Happened]) -> Iterator[str]:
    """/readyz names what is away while it is away, and only then."""
    killed = {"server killed", "agent killed"}  # the one that starts again waits for what is away, and says so
    for sentence, troubles in ((LOG_AWAY, LOG_TROUBLES), (STORE_AWAY, STORE_TROUBLES), (AGENT_AWAY, killed)):
        spans = list(_spans(happened, troubles | killed))
        for each in ledger.health:
            said = any(text.startswith(sentence) for text in each.degraded or ())
            if said and not any(began <= each.at <= ended + RETURN_S for began, ended in spans):
                yield f"server {each.server} said {each.degraded} while nothing was wrong"
                break
    for sentence, troubles in ((LOG_AWAY, LOG_TROUBLES), (STORE_AWAY, {"store away"})):
        for trouble in happened:
            if trouble.name not in troubles:
                continue
            for server in (0, 1):
                heard = [
                    each.degraded
                    for each in ledger.health
                    if each.server == server
                    and each.degraded is not None
                    and trouble.began + SILENCE_S - 1 <= each.at <= min(trouble.ended, trouble.began + SILENCE_S + 2)
                ]
                if len(heard) > 3 and not any(t.startswith((sentence, AGENT_AWAY)) for said in heard for t in said):
                    yield f"server {server} did not say {sentence!r} during {trouble.name}: {trouble.note}"


def _spans(happened: list[Happened], names: set[str]) -> Iterator[tuple[float, float]]:
    """(began, ended) of the troubles of these names; what begins within RETURN_S of an end prolongs it."""
    for trouble in happened:
        if trouble.name in names:
            ended = trouble.ended
            for other in happened:  # in the order in which they began
                if trouble.began <= other.ended and other.began <= ended + RETURN_S:
                    ended = max(ended, other.ended)
            yield trouble.began, ended


def same_everywhere(team: Team) -> Iterator[str]:
    """Both servers show the same arms."""
    for policy in ("films", "news", "shop"):
        for segment in ("all", "s0", "s3"):
            path = f"/v1/policies/{policy}/arms?segment={segment}"

            def shown(http: httpx.Client, path: str = path) -> Any:
                return [{**arm, "probability": None} for arm in http.get(path).json()["arms"]]

            first, second = (server.http for server in team.servers)
            try:
                wait_for(lambda: shown(first) == shown(second), "", 5.0, 0.1)  # noqa: B023
            except AssertionError:
                yield f"the servers show different arms of {policy} for {segment}"


def own_mistakes(team: Team) -> Iterator[str]:
    """No process ended by itself or wrote a traceback."""
    for path in sorted(team.folder.glob("*.log")):
        if "Traceback" in (text := path.read_text(errors="replace")):
            yield f"{path.name} has a traceback: {text[text.index('Traceback') :][:1500]}"


def check(team: Team, tail: Tail, ledger: Ledger, happened: list[Happened]) -> tuple[list[str], Counts, int]:
    """(what is wrong, counts, decisions lost) of a team that has settled."""
    wrong: list[str] = []
    checks: list[Callable[[], Iterator[str]]] = [
        lambda: rewards_in_log(tail, ledger),
        lambda: letters(team, ledger),
        lambda: answers(ledger, happened),
        lambda: truth(ledger, happened),
        lambda: same_everywhere(team),
        lambda: operators_replay(team),
        lambda: own_mistakes(team),
    ]
    for each in checks:
        wrong += each()
    found, outcomes = parameters(team, tail)
    lost, n_lost = lost_decisions(tail, ledger, happened)
    records = sum(len(tail.records[shard]) for shard in range(tail.shards))
    counts = Counts(records, tail.rewards.total(), len(tail.decisions), outcomes)
    return wrong + found + lost, counts, n_lost
