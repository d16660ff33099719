"""Every kind of fault once under load, with real processes, and the verdict; `make faults-distributed` draws many."""

import random
from collections.abc import Iterator

import pytest

from tests.faults.director import Run, Stage, in_turn, stage
from tests.faults.scenarios import away
from tests.faults.site import Site
from tests.faults.troubles import TROUBLES
from tests.parts.kafka import Broker
from tests.parts.redis import Cluster

SEED = 1
LANES = (
    ("learner killed", "learner stopped", "worker killed", "restored", "changes"),
    ("router killed", "server killed", "agent killed", "learner joins"),
    ("broker killed", "master killed", "network", "broker stopped"),
)


@pytest.fixture(scope="module")
def made(kafka: Broker, redis_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(Site(kafka, redis_cluster), SEED, tmp_path_factory.mktemp("faults")) as found:
        yield found


def judge(made: Stage, run: Run) -> None:
    """Prints what happened; where it went wrong what the processes wrote is kept in pytest's folder."""
    print(run.line())
    made.failed = bool(run.wrong)
    assert not run.wrong, "\n".join(run.wrong)


def test_every_fault_once(made: Stage) -> None:
    assert sorted(name for lane in LANES for name in lane) == sorted(TROUBLES)
    run = made.run(SEED, [(0.5, in_turn(made.team, random.Random(f"{SEED} {lane}"), lane)) for lane in LANES], 0.0)
    judge(made, run)
    assert run.recommends > 300
    assert run.acknowledged > 100


@pytest.mark.parametrize("what", ["log-away", "store-away"])
def test_log_or_store_away(made: Stage, what: str) -> None:
    run, figures = away(made, what, 7.0, SEED)
    judge(made, run)
    assert figures["away"]["recommend 200, /s"] > 10
    assert ("feedback 503, /s" in figures["away"]) == (what == "log-away")
    assert ("feedback 202, /s" in figures["away"]) == (what == "store-away")
