"""Who may do what: keys, roles, rate limits."""

import hashlib

import pytest

from server.auth import ROLES, ApiKeyError, Gate, new_key, parse_key
from server.limits import CALLERS_MAX, RateLimit
from server.settings import Settings
from tests.server.conftest import BANKER, TestClient, client_of
from tests.server.memory import MemoryEngine

SECRETS = {role: f"secret-of-{role}-123456" for role in ROLES}
KEYS = tuple(parse_key(f"{role}-key:{role}:{secret}") for role, secret in SECRETS.items())
CALLS = [
    ("POST", "/v1/recommend", "recommend"),
    ("POST", "/v1/recommend/batch", "recommend"),
    ("POST", "/v1/feedback", "feedback"),
    ("GET", "/v1/policies", "admin"),
    ("GET", "/v1/policies/p", "admin"),
    ("PUT", "/v1/policies/p", "admin"),
    ("PATCH", "/v1/policies/p", "admin"),
    ("DELETE", "/v1/policies/p", "admin"),
    ("GET", "/v1/policies/p/arms", "admin"),
    ("GET", "/v1/policies/p/arms?limit=nonsense", "admin"),
    ("PUT", "/v1/policies/p/graph", "admin"),
    ("GET", "/v1/policies/p/graph", "admin"),
    ("GET", "/v1/policies/p/items/a", "admin"),
    ("PUT", "/v1/policies/p/items/a", "admin"),
    ("PATCH", "/v1/policies/p/items/a", "admin"),
    ("DELETE", "/v1/policies/p/items/a", "admin"),
]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize(("method", "path", "role"), CALLS)
def test_each_route_wants_its_role(engine: MemoryEngine, method: str, path: str, role: str) -> None:
    with client_of(Settings(api_keys=KEYS), engine) as client:
        statuses = {other: client.request(method, path, headers=bearer(SECRETS[other])).status_code for other in ROLES}
        for other, status in statuses.items():
            assert (status in (401, 403)) == (other not in (role, "admin")), (other, status)
            assert status != 401
        refused = client.request(method, path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert client.request(method, path, headers=bearer("of nobody")).status_code == 401
    assert engine.state.applied == 0


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", SECRETS["admin"], "Bearer \udcff"])
def test_a_header_that_is_no_key_is_401(header: str) -> None:
    from server.errors import Problem

    with pytest.raises(Problem) as caught:
        Gate(KEYS).admit(header, "recommend")
    assert caught.value.status == 401


def test_health_needs_no_key_and_metrics_any(engine: MemoryEngine) -> None:
    with client_of(Settings(api_keys=KEYS), engine) as client:
        for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=bearer(SECRETS["feedback"])).status_code == 200


def test_a_key_may_have_several_roles_and_be_stored_as_its_hash() -> None:
    secret, line = new_key("web", "recommend+feedback")
    assert secret not in line
    key = parse_key(line)
    assert key.digest == hashlib.sha256(secret.encode()).digest()
    assert (key.may("recommend"), key.may("feedback"), key.may("admin")) == (True, True, False)
    assert Gate([key]).admit(f"bearer {secret}", "feedback") == key


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x", "NAME:ROLES:KEY"),
        ("web:recommend:", "NAME:ROLES:KEY"),
        ("web:root:0123456789abcdef", "'root' is not a role"),
        ("web:admin:tooshort", "shorter than 16"),
        ("web:admin:sha256=12", "64 hexadecimal"),
    ],
)
def test_a_key_that_cannot_be_is_refused_without_showing_it(text: str, sentence: str) -> None:
    with pytest.raises(ApiKeyError, match=sentence) as caught:
        parse_key(text)
    assert "tooshort" not in str(caught.value)


def test_the_rate_limit_answers_429_with_the_time_to_wait(engine: MemoryEngine) -> None:
    settings = Settings(api_keys=KEYS, rate_limit_per_s=0.25, rate_limit_burst=2)
    with client_of(settings, engine) as client:
        client.put("/v1/policies/p", json=BANKER, headers=bearer(SECRETS["admin"]))
        asks = [
            client.post("/v1/recommend", json={"policy": "p"}, headers=bearer(SECRETS["recommend"])) for _ in range(3)
        ]
        assert [answer.status_code for answer in asks] == [200, 200, 429]
        assert 1 <= int(asks[2].headers["retry-after"]) <= 4
        assert asks[2].json()["type"].endswith("too-many-requests")
        # Another key has a bucket of its own, and health is never refused.
        assert client.get("/v1/policies", headers=bearer(SECRETS["admin"])).status_code == 200
        assert client.get("/healthz").status_code == 200
    assert len(engine.decisions) == 2


def test_without_a_limit_nobody_waits(client: TestClient) -> None:
    assert {client.get("/v1/policies").status_code for _ in range(200)} == {200}


def test_a_caller_gets_its_rate_and_no_more() -> None:
    now = [0.0]
    limit = RateLimit(10.0, 5.0, lambda: now[0])
    passed = 0
    for step in range(1000):  # 10 s in steps of 10 ms, one request each
        now[0] = step / 100
        passed += limit.wait_s("a") == 0
    assert 5 + 99 <= passed <= 5 + 101


def test_buckets_are_bounded_by_the_callers_of_late() -> None:
    now = [0.0]
    limit = RateLimit(1.0, 10.0, lambda: now[0])
    for i in range(2000):
        now[0] = i * 1.0
        limit.wait_s(f"caller {i}")
    assert len(limit.buckets) < 20
    now[0] = 5000.0
    for i in range(CALLERS_MAX + 100):
        limit.wait_s(f"other {i}")
    assert len(limit.buckets) <= CALLERS_MAX + 1
