"""The data folder's disk fills up under a running server, and is freed again."""

from pathlib import Path

import httpx

from tests.server.processes import serving, wait_for
from tests.streaming.faults import filled, small_disk

POLICY = {"algorithm": "thompson-beta", "arms": ["a", "b"]}


def test_feedback_is_refused_while_the_disk_is_full_and_nothing_is_lost() -> None:
    with small_disk("160m") as disk, serving(disk / "data") as server, httpx.Client(base_url=server.url) as client:
        assert client.put("/v1/policies/p", json=POLICY).status_code in (201, 202)
        wait_for(lambda: client.get("/v1/policies/p").status_code == 200)
        accepted = 0

        def decide() -> dict[str, object]:
            answer = client.post("/v1/recommend", json={"policy": "p"})
            assert answer.status_code == 200
            decision = answer.json()
            return {"decision_id": decision["decision_id"], "item": decision["items"][0]["id"], "reward": 1}

        def applied() -> float:
            line = next(
                line
                for line in client.get("/metrics").text.splitlines()
                if line.startswith("croupier_reward_outcomes_total") and 'outcome="applied",policy="p"' in line
            )
            return float(line.split()[-1])

        for _ in range(5):
            accepted += client.post("/v1/feedback", json=decide()).status_code == 202
        assert accepted == 5
        with filled(Path(disk)):
            refused: list[httpx.Response] = []

            def is_refused() -> bool:  # what room the write-ahead log still has is used up first
                nonlocal accepted
                answer = client.post("/v1/feedback", json=decide())
                accepted += answer.status_code == 202
                refused.extend([answer] if answer.status_code != 202 else [])
                return bool(refused)

            wait_for(is_refused, 60)
            assert refused[0].status_code == 503
            assert refused[0].headers["content-type"] == "application/problem+json"
            assert int(refused[0].headers["retry-after"]) >= 1
            assert client.get("/readyz").status_code == 200
            assert any("log" in reason for reason in client.get("/readyz").json()["degraded"])
            decide()
        row = decide()
        wait_for(lambda: client.post("/v1/feedback", json=row).status_code == 202, 30)
        accepted += 1
        wait_for(lambda: applied() == accepted, 30)
        assert server.stop() == 0
