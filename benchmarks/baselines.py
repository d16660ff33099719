"""What the server is measured against, and the worlds it is measured with.

Constant         a raw ASGI app by uvicorn (uvloop, httptools, its other settings as it has them) that reads the
                 request and returns a constant of the size of our answer; no access log, as ours
PydanticServer   a whole croupier without the hot path, with the route of benchmarks.pydantic_route in it
Slates           a diag-linucb policy of 10,000 clusters x `width` random items out of 20,000, and requests for ten
                 of them: ten clusters of every request are drawn anew, and so are their weights
"""

import asyncio
import contextlib
import io
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.kernels import N_CLUSTERS, N_ITEMS, SLATE, K, random_graph
from loadtest.client import Address, Connection, Unreachable
from loadtest.fast import Requests
from loadtest.users import set_up
from loadtest.worlds import World, reward_contract
from server.launch import ServerProcess, free_port

DISTINCT = 8192  # requests, all different

CONSTANT = """
import ctypes, os, signal, socket, sys, uvicorn

def end_with_parent():
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)

end_with_parent()
PORT, SIZE, WORKERS = map(int, sys.argv[1:])
BODY = b'{"constant":"' + b"x" * (SIZE - 15) + b'"}'
HEAD = {"type": "http.response.start", "status": 200,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]}

async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send(HEAD)
    await send({"type": "http.response.body", "body": BODY})

listener = socket.create_server(("127.0.0.1", PORT), backlog=2048)
for _ in range(WORKERS - 1):
    if os.fork() == 0:
        end_with_parent()
        break
config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none",
                        timeout_keep_alive=75, server_header=False)
uvicorn.Server(config).run(sockets=[listener])
"""


class PydanticServer(ServerProcess):
    """`croupier serve --no-hot-path` with the pydantic route."""

    code = ServerProcess.code.replace("server.cli", "benchmarks.pydantic_route")

    def __init__(self) -> None:
        super().__init__(["--no-hot-path"])


@dataclass(frozen=True)
class Constant:
    """A raw ASGI app that answers all with one JSON of `size` bytes."""

    url: str
    pids: list[int]  # of its workers

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, size: int, workers: int = 1) -> AsyncIterator["Constant"]:
        """From when it listens to the end of an `async with` block."""
        port = free_port()
        command = [sys.executable, "-c", CONSTANT, str(port), str(size), str(workers)]
        with subprocess.Popen(command) as process:
            try:
                await cls(f"http://127.0.0.1:{port}", [])._listens()
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                made = cls(f"http://127.0.0.1:{port}", [process.pid, *map(int, children)])
                assert len(made.pids) == workers
                yield made
            finally:
                process.terminate()

    async def _listens(self) -> None:
        for _ in range(1000):
            try:
                async with Connection(Address.of(self.url)) as connection:
                    await connection.request("GET", "/")
                    return
            except Unreachable:
                await asyncio.sleep(0.01)
        raise Unreachable(f"nobody listens at {self.url}")


@dataclass(frozen=True)
class Slates:
    """The policy, which a server is given by `put`, and requests for it."""

    width: int  # items a cluster
    clusters: int = N_CLUSTERS

    @property
    def policy(self) -> str:
        return f"slates{self.width}x{self.clusters}"

    @property
    def edges(self) -> int:
        """What a decision chooses from."""
        return K * self.width

    async def put(self, *urls: str) -> None:
        """The policy and its graph, to servers that are ready; raises SetupRefused."""
        graph = random_graph(np.random.default_rng(self.width), self.width, self.clusters)
        out = io.BytesIO()
        np.savez(out, centroids=graph.centroids, indptr=graph.indptr, items=graph.items, ids=np.array(graph.ids))
        spec = {"algorithm": "diag-linucb", "clusters_per_user": K, "alpha": 0.3, "reward": reward_contract(1800)}
        one = (msgspec.json.encode({"clusters": [0]}),)
        world = World(self.policy, spec, graph.ids, one, np.full((1, N_ITEMS), 0.5), 1800.0, SLATE, out.getvalue())
        for url in urls:
            await set_up(url, world)

    def bodies(self, n: int = DISTINCT, seed: int = 0) -> list[bytes]:
        """Bodies of recommend requests, each with other clusters and weights of four digits."""
        rng = np.random.default_rng(seed)
        made = []
        for _ in range(n):
            clusters = rng.choice(self.clusters, K, replace=False).tolist()
            weights = [round(float(w), 4) for w in rng.uniform(0.0001, 1.0, K)]
            user = {"clusters": clusters, "weights": weights}
            made.append(msgspec.json.encode({"policy": self.policy, "user": user, "k": SLATE}))
        return made


def posts(url: str, path: str, bodies: list[bytes]) -> Requests:
    """The bodies as requests to a path."""
    address = Address.of(url)
    return Requests.of([address.request("POST", path, body) for body in bodies])


async def answer_size(url: str, path: str, bodies: list[bytes]) -> int:
    """Bytes of the answer's body, the mean over some requests."""
    async with Connection(Address.of(url)) as connection:
        answers = [await connection.request("POST", path, body) for body in bodies[:100]]
    if any(answer.status != 200 for answer in answers):
        raise Unreachable(f"POST {path} answered {answers[0].status}: {answers[0].body[:500]!r}")
    return round(sum(len(answer.body) for answer in answers) / len(answers))
