"""A real Prometheus that scrapes what a test runs, every second, and evaluates rules as often."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from tests.parts.host import Process, free_ports, unavailable, wait_for

SCRAPE_S = 1


class Sample(NamedTuple):
    """One series of an instant query's answer."""

    labels: Mapping[str, str]
    value: float


class QueryFailed(AssertionError):
    """Prometheus did not take an expression; the sentence is its own."""


class Prometheus:
    """``Prometheus(folder, {job: [HOST:PORT, ...]}, rules)`` in a ``with`` block, then ``query`` and ``rules``."""

    def __init__(self, folder: Path, jobs: Mapping[str, Sequence[str]], rules: Path | None = None) -> None:
        self.folder, self.targets = folder, sum(len(targets) for targets in jobs.values())
        (self.port,) = free_ports(1)
        self._config = {
            "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
            "rule_files": [] if rules is None else [str(rules.resolve())],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(targets)}]} for job, targets in jobs.items()
            ],
        }
        self._process: Process | None = None
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def __enter__(self) -> "Prometheus":
        """Returns once each target was scraped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config))
        self._process = Process(
            [
                tool("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            self.folder / "prometheus.log",
        )
        self._process.start()
        try:
            wait_for(self._ready, "Prometheus is ready", 60)
            wait_for(lambda: len(self.query("up == 1")) == self.targets, "every target is scraped", 60, 0.2)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
        if self._process is not None:
            self._process.kill()

    def query(self, expr: str) -> list[Sample]:
        """What an instant query answers; a scalar is one sample without labels. QueryFailed where it is refused."""
        answer = self._http.post("/api/v1/query", data={"query": expr}).json()
        if answer["status"] != "success":
            raise QueryFailed(f"{expr}: {answer['error']}")
        data = answer["data"]
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(each["metric"], float(each["value"][1])) for each in data["result"]]

    def finite(self, expr: str) -> list[Sample]:
        """The samples of `query` that are numbers."""
        return [sample for sample in self.query(expr) if math.isfinite(sample.value)]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its ``health``, ``lastError`` and what else Prometheus knows of it."""
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _ready(self) -> bool:
        assert self._process is not None
        self._process.check()
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False


def tool(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``; the test skips (CI: fails) where it is absent."""
    found = shutil.which(name)
    if found is None:
        unavailable(f"no {name} on the PATH (Debian: apt-get install prometheus)")
    return found
