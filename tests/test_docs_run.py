"""Every block of every page runs, in order, in a folder of its own, against a real server; what is not run is listed.

The pages share one server; each begins with no policies but those of `BEFORE`. The count of what was run and looked at
is written to build/artefacts/docs.md.
"""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.pages import PAGES, ROOT, WORDS, Block, blocks
from tests.server.processes import Server, client, make_policy, serving, wait_for
from tests.walk import Walk

HEADLINES = {
    "algorithm": "banker",
    "arms": ["calm", "loud", "odd"],
    "reward": {"window": "30m", "default": 0},
}
# Pages that go on from where the README's first policy ends.
BEFORE = {"docs/operations.md", "docs/client.md"}
# Pages whose blocks keep processes in hand between them: each is run, whole, by a test of its own.
OWN = {"docs/how-to/kafka-producer.md": "tests/client/test_kafka_page.py"}
pytestmark = pytest.mark.xdist_group("parts")  # one server for all pages, one Kafka
ALL = [block for page in PAGES for block in blocks(page)]


def pages_with(word: str) -> list[str]:
    """Pages that have blocks to run, with that word or else without any."""
    return list(dict.fromkeys(each.page for each in ALL if each.language in ("sh", "python") and each.word == word))


def test_every_fence_says_what_its_block_is() -> None:
    for block in ALL:
        assert block.word in WORDS.get(block.language, {}), f"{block.at}: no fence `{block.language} {block.word}`"


def test_the_first_screen_has_the_two_commands() -> None:
    first = (ROOT / "README.md").read_text()[:1200]
    assert "make demo" in first
    assert "make test" in first


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("docs") / "data") as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def folder(tmp_path: Path, shared_data: Path) -> Path:
    """A reader's folder, with the data that the README names."""
    (tmp_path / "ratings.csv").symlink_to(shared_data / "movielens-latest-small" / "ratings.csv")
    (tmp_path / "headlines.csv").symlink_to(shared_data / "upworthy.csv")
    return tmp_path


def as_new(server: Server, page: str) -> None:
    with client(server) as http:
        for each in http.get("/v1/policies").json()["policies"]:
            http.delete(f"/v1/policies/{each['name']}").raise_for_status()
        wait_for(lambda: not http.get("/v1/policies").json()["policies"])
        if page in BEFORE:
            make_policy(http, "headlines", HEADLINES)


def shape(value: Any) -> Any:
    """Members and their kinds; of a list, those of its first element."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


@pytest.mark.parametrize("page", pages_with(""))
def test_a_page_runs_from_top_to_bottom(page: str, folder: Path, server: Server) -> None:
    as_new(server, page)
    walk = Walk(folder, server.url, server_data(server))
    printed, before = "", None
    for block in blocks(ROOT / page):
        if block.language in ("sh", "python") and not block.word:
            printed = walk.run(block)
        if block.language == "json" and before is not None and before.language in ("sh", "python") and not before.word:
            assert shape(json.loads(block.text)) == shape(json.loads(printed)), f"{block.at}: {printed}"
        before = block


def server_data(server: Server) -> Path:
    (flag,) = [each for each in server.process.args if str(each).startswith("--data=")]  # type: ignore[union-attr]
    return Path(str(flag).partition("=")[2])


@pytest.mark.parametrize("page", [page for page in pages_with("kafka") if page not in OWN])
def test_blocks_with_kafka_run(page: str, folder: Path, server: Server, kafka: Any, redis_single: Any) -> None:
    as_new(server, page)
    shop = "docs" + re.sub(r"\W", "", page).lower()
    walk = Walk(folder, server.url, server_data(server), kafka.bootstrap, redis_single.url, shop)
    try:
        if page in KAFKA_BEFORE:
            KAFKA_BEFORE[page](walk, page)
        for block in blocks(ROOT / page):
            if block.word == "kafka":
                walk.run(block)
        walk.end()
    finally:
        walk.kill()


def decisions_to_answer(walk: Walk, page: str) -> None:
    """A shop that runs, and rewards for some of its decisions as a file and as messages."""
    at = "--log kafka://h1:9092/shop --store redis://r1:6379/shop"
    walk.run(Block(page, 0, "sh", "kafka", f"croupier serve --shards 2 {at}\ncroupier learner {at}\n"))
    rows = []
    with httpx.Client(base_url=f"http://127.0.0.1:{walk.ports['serve']}", timeout=30) as http:
        make_policy(http, "headlines", HEADLINES)
        for _ in range(5):
            answer = http.post("/v1/recommend", json={"policy": "headlines"}).json()
            rows.append((answer["decision_id"], answer["items"][0]["id"]))
    (walk.folder / "rewards.csv").write_text("".join(f"{decision},{item},1\n" for decision, item in rows))


KAFKA_BEFORE = {"docs/router.md": decisions_to_answer}


def test_pages_with_a_test_of_their_own_have_it() -> None:
    for page, test in OWN.items():
        assert Path(page).name in (ROOT / test).read_text(), page


def test_blocks_of_make_can_be_made() -> None:
    for block in ALL:
        if (block.language, block.word) == ("sh", "make"):
            for command in re.findall(r"^make ([^#\n]+)", block.text, re.MULTILINE):
                done = subprocess.run(
                    ["make", "--dry-run", *command.split()], cwd=ROOT, capture_output=True, check=False
                )
                assert done.returncode == 0, f"{block.at}: make {command}: {done.stderr.decode()}"


def test_blocks_of_data_can_be_read() -> None:
    for block in ALL:
        if block.language == "json":
            json.loads(block.text)
        if block.language == "toml":
            tomllib.loads(block.text)
