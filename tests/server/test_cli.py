"""The command line: help, exit codes, one sentence for what the world does wrong, and commands on real input."""

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bandits.graph import Graph
from server.app import create_app
from server.cli import COMMANDS, cli
from server.settings import NAMES, Settings, flag, markdown
from tests.server.conftest import BANKER, TestClient, serving
from tests.server.memory import MemoryEngine
from tests.server.test_app import small_graph

SECRET = "a-secret-of-the-test"


def run(*args: str, input: str | None = None, env: dict[str, str] | None = None) -> Result:
    result = CliRunner(env=env).invoke(cli, args, input=input)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def assert_fails(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr, result.stderr


def test_help_names_every_command_and_each_has_examples() -> None:
    text = run("--help").output
    for name in COMMANDS:
        assert f"  {name} " in text
        help = run(name, "--help")
        assert help.exit_code == 0
        assert "Example" in help.output, name
        assert ("Commands:" in help.output) == (name in ("policy", "graph", "evaluate", "snapshot"))


def test_help_of_serve_has_every_setting() -> None:
    text = run("serve", "--help").output
    for name in NAMES:
        assert flag(name) in text


def test_the_settings_table_and_list_are_complete() -> None:
    assert run("settings", "--markdown").output == markdown()
    listing = run("settings").output
    assert all(f"CROUPIER_{name.upper()}" in listing for name in NAMES)


def test_a_new_key_is_one_the_settings_take() -> None:
    output = run("settings", "--new-key", "web:recommend+feedback").output
    line = output.split('api_keys = ["')[1].split('"')[0]
    assert Settings.load(flags={"api_keys": line}).api_keys[0].name == "web"
    assert_fails(run("settings", "--new-key", "web:king"), 2, "'king' is not a role")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from server.cli import cli; cli(['--help'], standalone_mode=False);"
        "print([m for m in ('numpy', 'numba', 'fastapi', 'httpx', 'msgspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["nope"], 2, "No such command"),
        (
            ["replay", "--data", "nowhere"],
            1,
            "there is no data folder at nowhere: `croupier serve --data nowhere` makes",
        ),
        (["policy", "put", "x", "@nowhere.json"], 1, "croupier: nowhere.json: No such file or directory."),
        (["evaluate", "ratings", "--ratings", "nowhere.csv"], 1, "croupier: nowhere.csv: No such file or directory."),
        (["serve", "--hots", "x"], 2, "--host"),
        (["serve", "--workers", "two"], 2, "setting workers = 'two' (from --workers): must be a whole number"),
        (["serve", "--host", "0.0.0.0"], 2, "is not a loopback address"),
        (["serve", "--config", "/nowhere.toml"], 2, "/nowhere.toml: cannot be read"),
        (["demo", "--duration", "x"], 2, "--duration"),
        (["graph", "build"], 2, "--ratings"),
        (["graph", "build", "--users", "u.npy"], 2, "--items"),
        (["graph", "build", "--ratings", "/nowhere.csv"], 1, "/nowhere.csv"),
        (["evaluate", "bernoulli"], 2, "--problems"),
        (["evaluate", "bernoulli", "--problems", "/nowhere.csv"], 1, "/nowhere.csv"),
        (["evaluate", "switching", "--policy", "wizard"], 1, "wizard"),
        (["evaluate", "switching", "--delay", "-5"], 2, "-5"),
        (["evaluate", "ratings", "--ratings", "/nowhere.csv"], 1, "/nowhere.csv"),
        (["policy", "list", "--url", "http://127.0.0.1:1"], 1, "no server at http://127.0.0.1:1"),
        (["policy", "list", "--url", "gopher:x"], 1, "no server at gopher:x"),
        (["policy", "put", "p", "{"], 2, "not JSON"),
        (["policy", "put", "p", "@/nowhere.json"], 1, "/nowhere.json"),
        (["replay", "--data", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(args: list[str], code: int, words: str) -> None:
    assert_fails(run(*args), code, words)


@pytest.mark.parametrize(("file", "words"), [("garbage", "damaged"), ("foreign", "another application")])
def test_serve_refuses_a_log_that_is_not_ours_and_leaves_it_alone(tmp_path: Path, file: str, words: str) -> None:
    log = tmp_path / "log.sqlite"
    if file == "garbage":
        log.write_bytes(b"this is no database" * 100)
    else:
        with contextlib.closing(sqlite3.connect(log)) as other:
            other.execute("create table theirs (a)")
            other.commit()
    before = log.read_bytes()
    command = [sys.executable, "-c", "from server.cli import main; main()"]
    command += ["serve", "--data", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("croupier: ")
    assert words in done.stderr
    assert log.read_bytes() == before


def test_environment_reaches_the_server_settings() -> None:
    assert_fails(run("serve", env={"CROUPIER_SHARDS": "none"}), 2, "(from CROUPIER_SHARDS)")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real HTTP server on loopback with one API key."""
    settings = Settings.load(flags={"api_keys": f"test:admin:{SECRET}"})
    with serving(create_app(settings, MemoryEngine())) as url:
        yield url


def test_policies_over_http(url: str, tmp_path: Path) -> None:
    env = {"CROUPIER_URL": url, "CROUPIER_KEY": SECRET}
    assert "version 1" in run("policy", "put", "headlines", json.dumps(BANKER), env=env).output
    (tmp_path / "films.json").write_text('{"algorithm": "diag-linucb"}')
    assert run("policy", "put", "films", f"@{tmp_path / 'films.json'}", env=env).exit_code == 0
    (tmp_path / "graph.npz").write_bytes(small_graph().to_bytes())
    uploaded = run("policy", "graph", "films", str(tmp_path / "graph.npz"), env=env)
    assert small_graph().version in uploaded.output
    assert json.loads(run("policy", "graph", "films", env=env).output)["version"] == small_graph().version
    assert run("policy", "patch", "headlines", "-", input='{"reward": {"window": "1h"}}', env=env).exit_code == 0
    shown = json.loads(run("policy", "show", "headlines", env=env).output)
    assert shown["definition"]["reward"]["window"] == "1h"
    assert len(run("policy", "show", "headlines", "--arms", env=env).output.splitlines()) == 3
    listed = run("policy", "list", env=env).output.splitlines()
    assert [line.split()[:2] for line in listed] == [["films", "diag-linucb"], ["headlines", "banker"]]

    assert run("policy", "delete", "films", input="n\n", env=env).exit_code == 1
    assert run("policy", "delete", "films", "--yes", env=env).exit_code == 0
    assert_fails(run("policy", "show", "films", env=env), 1, "Unknown policy (policy): There is no policy 'films'")
    assert_fails(
        run("policy", "put", "x", '{"algorithm": "magic"}', env=env), 1, "(algorithm)", "There are diag-linucb"
    )
    assert_fails(run("policy", "list", "--url", url, "--key", "wrong"), 1, "Unauthorized")
    (tmp_path / "bad.npz").write_bytes(b"no")
    assert_fails(run("policy", "graph", "headlines", str(tmp_path / "bad.npz"), env=env), 1, "Conflict (graph)")


def test_a_graph_from_embeddings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "u.npy", rng.normal(size=(40, 4)))
    np.save(tmp_path / "i.npy", rng.normal(size=(6, 4)))
    (tmp_path / "ids.txt").write_text("\n".join("abcdef"))
    args = ["graph", "build", "--users", f"{tmp_path}/u.npy", "--items", f"{tmp_path}/i.npy"]
    args += ["--ids", f"{tmp_path}/ids.txt", "--clusters", "3", "--items-per-cluster", "2"]
    done = run(*args, "-o", f"{tmp_path}/g.npz")
    assert done.exit_code == 0, done.output
    graph = Graph.load(tmp_path / "g.npz")
    assert (graph.n_clusters, graph.ids, len(graph.items)) == (3, tuple("abcdef"), 6)
    assert_fails(run(*args, "--clusters", "41"), 1, "n_clusters")
    (tmp_path / "u.npy").write_bytes(b"nothing")
    assert_fails(run(*args), 1, "u.npy", "numpy.save")


def test_a_graph_from_real_ratings(shared_data: Path, tmp_path: Path) -> None:
    ratings = shared_data / "movielens-latest-small" / "ratings.csv"
    args = ["graph", "build", "--ratings", str(ratings)]
    done = run(*args, "-o", f"{tmp_path}/g.npz", "--save-users", f"{tmp_path}/u.json")
    assert done.exit_code == 0, done.output
    users = json.loads((tmp_path / "u.json").read_text())
    graph = Graph.load(tmp_path / "g.npz")
    assert "318" in graph.ids
    assert len(users) == 610
    assert {len(row) for row in users.values()} == {graph.centroids.shape[1]}


def test_a_data_folder_is_examined_replayed_exported_and_imported(tmp_path: Path) -> None:
    data, copy, file = tmp_path / "data", tmp_path / "copy", tmp_path / "backup"
    with TestClient(create_app(Settings(data=data, shards=2, flush_ms=1))) as client:
        client.put("/v1/policies/headlines", json=BANKER).raise_for_status()
        decision = client.post("/v1/recommend", json={"policy": "headlines"}).json()
        row = {"decision_id": decision["decision_id"], "item": decision["items"][0]["id"], "reward": 1}
        client.post("/v1/feedback", json=row).raise_for_status()

    examined = run("doctor", "--data", str(data))
    assert (examined.exit_code, "in order" in examined.output) == (0, True), examined.output
    replayed = run("replay", "--data", str(data))
    assert (replayed.exit_code, "bit for bit" in replayed.output) == (0, True), replayed.output
    assert run("export", str(file), "--data", str(data)).exit_code == 0
    assert_fails(run("export", str(file), "--data", str(data)), 1, str(file))
    assert run("import", str(file), "--data", str(copy), "--shards", "3").exit_code == 0
    assert_fails(run("import", str(file), "--data", str(copy)), 1, str(copy))

    # What was learned, and the decision that is still open, have come along.
    with TestClient(create_app(Settings(data=copy, shards=3))) as client:
        arms = client.get("/v1/policies/headlines/arms").json()["arms"]
        assert sum(arm["rewards"] for arm in arms) == 1
        assert client.post("/v1/feedback", json=row).status_code == 202
    assert run("doctor", "--data", str(tmp_path / "nothing")).exit_code == 1


def test_evaluate_bernoulli_on_real_headlines(shared_data: Path, tmp_path: Path) -> None:
    args = ["evaluate", "bernoulli", "--problems", str(shared_data / "upworthy.csv"), "--limit", "3"]
    args += ["--policy", "banker", "uniform", "--delay", "0", "--delay", "100"]
    found = json.loads(run(*args, "--json", "--plot", f"{tmp_path}/x.png").stdout)
    rows = [(row["policy"], row["delay"]) for row in found["results"]]
    assert rows == [("banker", "0"), ("banker", "100"), ("uniform", "0"), ("uniform", "100")]
    shares = {(row["policy"], row["delay"]): row["share"] for row in found["results"]}
    assert shares["banker", "0"] > shares["uniform", "0"] + 0.1
    for one in found["runs"]:
        assert one["share"] == pytest.approx((one["reward"] - one["uniform"]) / (one["best"] - one["uniform"]))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "share of lift" in run(*args).stdout


def test_evaluate_switching_and_several_values_after_one_flag() -> None:
    args = ["evaluate", "switching", "--horizon", "2000", "--policy", "banker", "uniform", "--delay", "0", "100"]
    found = json.loads(run(*args, "--seeds", "2", "--json").stdout)
    assert len(found["results"]) == 4
    assert {row["seeds"] for row in found["results"]} == {2}


def test_evaluate_ratings_on_real_films(shared_data: Path, tmp_path: Path) -> None:
    ratings = shared_data / "movielens-latest-small" / "ratings.csv"
    args = ["evaluate", "ratings", "--ratings", str(ratings), "--policy", "diag-linucb", "random"]
    args += ["--rounds", "500", "--limit", "200", "--plot", f"{tmp_path}/r.png"]
    found = json.loads(run(*args, "--json").stdout)
    assert set(found["policies"]) == {"diag-linucb", "random"}
    assert found["policies"]["diag-linucb"]["click_rate"] > found["policies"]["random"]["click_rate"]
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    table = run(*args[:4], "--policy", "random", "--rounds", "50", "--limit", "50").stdout
    assert "click rate" in table
