"""Every kind of fault once under load, with real processes, and the verdict; `make faults-distributed` draws many."""

import random
from collections.abc import Iterator

import pytest

from tests.faults.director import Stage, in_turn, stage
from tests.faults.scenarios import figures, log_away, store_away
from tests.faults.site import Site
from tests.faults.troubles import TROUBLES
from tests.parts.kafka import Broker
from tests.parts.redis import Cluster

SEED = 1
AWAY_S = 6.0
# Three lanes side by side; the third also has the log away (which is a broker killed) and the store away.
LANES = (
    ("learner killed", "worker killed", "restored", "learner stopped", "changes"),
    ("router killed", "server killed", "agent killed", "learner joins"),
    ("master killed", "network", "broker stopped"),
)


@pytest.fixture
def made(kafka: Broker, redis_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(Site(kafka, redis_cluster), SEED, tmp_path_factory.mktemp("faults")) as found:
        yield found


def test_every_fault_once(made: Stage) -> None:
    assert sorted({*(name for lane in LANES for name in lane), "broker killed"}) == sorted(TROUBLES)
    team = made.team
    first, second, third = (in_turn(team, random.Random(f"{SEED} {lane}"), lane) for lane in LANES)
    third = [("log away", log_away(team, AWAY_S)), *third, ("store away", store_away(team, AWAY_S))]
    run = made.run(SEED, [(0.5, first), (3.0, second), (0.5, third)], 0.0)
    print(run.line())
    made.failed = bool(run.wrong)  # what the processes wrote is kept in pytest's folder
    assert not run.wrong, "\n".join(run.wrong)
    assert run.recommends > 300
    assert run.acknowledged > 100
    away = {trouble.name: figures(made, trouble, AWAY_S)["away"] for trouble in made.happened}
    assert all(away[name]["recommend 200"] > 5 for name in ("log away", "store away"))
    assert "feedback 202" not in away["log away"]
    assert "feedback 503" in away["log away"]
    assert "feedback 202" in away["store away"]
