"""A running site moves from one machine to many and back, by the commands that a person would type."""

import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from server.cli import cli
from tests.parts.kafka import Broker
from tests.parts.redis import Single
from tests.server.processes import SERVE, client, make_policy, serving, wait_for

pytestmark = pytest.mark.xdist_group("parts")


def croupier(*arguments: str, code: int = 0, **environment: str) -> str:
    """Runs a command; what it printed on both streams."""
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@contextmanager
def learner(log: str, store: str) -> Iterator[None]:
    command = [sys.executable, "-c", SERVE, "learner", "--log", log, "--store", store, "--metrics-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def recommend(http: httpx.Client) -> dict[str, object]:
    answer = http.post("/v1/recommend", json={"policy": "headlines", "user": {"segment": "de"}}).json()
    return {"decision_id": answer["decision_id"], "item": answer["items"][0]["id"], "reward": 1.0}


def reward(http: httpx.Client, row: dict[str, object]) -> None:
    answer = http.post("/v1/feedback", json=row)
    assert answer.status_code == 202, answer.text


def outcomes(http: httpx.Client, outcome: str) -> int:
    text = http.get("/metrics").text
    found = re.findall(rf'croupier_reward_outcomes_total\{{outcome="{outcome}",policy="headlines"\}} (\S+)', text)
    return int(sum(map(float, found)))


def arms(http: httpx.Client) -> list[tuple[str, float, float]]:
    found = http.get("/v1/policies/headlines/arms", params={"segment": "de"})
    assert found.status_code == 200, found.text
    return sorted((arm["id"], arm["plays"], arm["rewards"]) for arm in found.json()["arms"])


def agent_answers(http: httpx.Client) -> None:
    """A worker recommends before its agent listens: until then whatever needs the agent is a 503."""
    wait_for(lambda: http.get("/v1/policies/headlines/arms").status_code == 200)


def test_decisions_of_one_machine_are_rewarded_on_many(kafka: Broker, redis_single: Single, tmp_path: Path) -> None:
    name = f"move{secrets.token_hex(4)}"
    log, store = f"kafka://{kafka.bootstrap}/{name}?one_broker=yes", f"{redis_single.url}/{name}"
    with serving(tmp_path / "one") as server, client(server) as http:
        make_policy(http, "headlines", {"algorithm": "thompson-beta", "arms": ["a", "b", "c"]})
        rows = [recommend(http) for _ in range(30)]
        for row in rows[:20]:
            reward(http, row)
        wait_for(lambda: outcomes(http, "applied") == 20)
        wait_for(lambda: sum(plays for _, plays, _ in arms(http)) == 30)
        learned = arms(http)
        assert server.stop() == 0
    one = ["--data", str(tmp_path / "one")]
    croupier("export", str(tmp_path / "one.croupier"), *one)
    assert "Start a server on it" in croupier(
        "import", str(tmp_path / "one.croupier"), "--log", log, "--store", store, "--shards", "3"
    )
    environment = {"CROUPIER_LOG": log, "CROUPIER_STORE": store}
    assert "bit for bit" in croupier("replay", **environment)
    assert "is in order" in croupier("doctor", **environment)
    with (
        serving(tmp_path / "many", log=log, store=store) as server,
        client(server) as http,
        learner(log, store),
    ):
        agent_answers(http)
        assert arms(http) == learned
        for row in rows:  # twenty were answered before they moved
            reward(http, row)
        wait_for(lambda: outcomes(http, "applied") == 30 and outcomes(http, "duplicate") == 20)
        fresh = recommend(http)
        assert server.stop() == 0
    assert "bit for bit" in croupier("replay", **environment)
    croupier("export", str(tmp_path / "many.croupier"), **environment)
    croupier("import", str(tmp_path / "many.croupier"), "--data", str(tmp_path / "back"))
    with serving(tmp_path / "back") as server, client(server) as http:
        agent_answers(http)
        reward(http, fresh)
        wait_for(lambda: outcomes(http, "applied") == 31)
        assert server.stop() == 0
    assert "bit for bit" in croupier("replay", "--data", str(tmp_path / "back"))


def run(*arguments: str, code: int, **environment: str) -> str:
    """As `croupier`, inside this process."""
    result = CliRunner().invoke(cli, list(arguments), env=environment)
    assert result.exit_code == code, result.output
    return result.output


def test_the_commands_say_what_is_wrong_with_a_place(tmp_path: Path) -> None:
    nowhere, secret = "kafka://127.0.0.1:1/x", "redis://me:hunter2@127.0.0.1:1/x"
    assert "without --store" in run("doctor", "--log", nowhere, code=2)
    assert "without --log" in run("replay", code=2, CROUPIER_STORE=secret)
    both = ["--log", nowhere, "--store", secret]
    assert "give either" in run("doctor", "--data", str(tmp_path), *both, code=2)
    wrong = ["--log", "kafka://h?nonsense=1", "--store", "redis://h"]
    assert "nonsense" in run("replay", *wrong, code=2)
    # A folder on the command line wins over what the environment says.
    folder = ["--data", str(tmp_path / "none")]
    assert "no data folder" in run("replay", *folder, code=1, CROUPIER_LOG=nowhere, CROUPIER_STORE=secret)
    said = run("doctor", *both, code=1)
    assert "127.0.0.1:1" in said
    assert "hunter2" not in said
