"""What deploy/ says can be done: commands parse, names exist, and a Redis started as it says serves the store.

There is no Docker here, so the containers themselves were never started; deploy/README.md says so too.
"""

import contextlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ACLResourcePatternType, ResourcePattern, ResourceType
from redis import Redis
from redis.exceptions import NoPermissionError

from server.auth import parse_key
from server.cli import COMMANDS, cli
from server.router_kafka import RewardsTopic
from server.settings import NAMES, PREFIX
from streaming.errors import LogUnavailable
from streaming.log import CONTROL, open_log
from streaming.log.kafka_group import Membership
from streaming.log.kafka_topics import open_public_topics
from streaming.log.kafka_url import kafka_producer, parse_kafka_url
from streaming.store import NOTHING, Commit, Manifest, open_store
from tests.parts.host import Process, accepts, free_ports, wait_for
from tests.parts.kafka import PASSWORD, USER, Broker
from tests.parts.redis import executable

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "croupier"]
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")


def example() -> dict[str, str]:
    lines = (DEPLOY / "env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled(text: str, values: dict[str, str]) -> str:
    """`text` with its variables replaced as compose does."""
    return VARIABLE.sub(lambda found: values.get(found[1]) or (found[3] if found[2] == "-" else ""), text)


def test_every_variable_is_in_the_example_and_used() -> None:
    used = {found[1] for found in VARIABLE.finditer((DEPLOY / "compose.yaml").read_text())}
    assert used | {COMPOSE["secrets"]["metrics_key"]["environment"]} == set(example())


@pytest.mark.parametrize("name", OURS)
def test_our_commands_and_settings_are_those_of_the_program(name: str) -> None:
    command, *arguments = SERVICES[name]["command"]
    assert command in COMMANDS
    with cli.make_context("croupier", [command], resilient_parsing=True) as context:
        parsed = cli.get_command(context, command)
        assert parsed is not None
        parsed.make_context(command, list(arguments), parent=context)
    settings = {variable.removeprefix(PREFIX).lower() for variable in SERVICES[name]["environment"]}
    assert settings <= set(NAMES), settings - set(NAMES)


def test_keys_of_the_example_are_keys_once_filled_in() -> None:
    values = {"METRICS_KEY": "k" * 32}
    keys = filled(example()["API_KEYS"], values).replace("PUT-A-KEY-HERE", "s" * 32)
    roles = {key.name: key.roles for key in map(parse_key, keys.split(","))}
    assert roles.keys() == {"web", "ops", "prometheus"}
    assert "admin" not in roles["web"] | roles["prometheus"]


def test_every_name_that_is_used_is_there() -> None:
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        networks = service.get("networks", [])
        assert set(networks) == set(COMPOSE["networks"]), name
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), f"{name}: {source}"
        assert re.search(r":v?\d+(\.\d+)+$", service["image"]) or service["image"] == "croupier", name
        once = name == "redis-cluster"
        image_has_one = service["image"] == "croupier"
        assert "healthcheck" in service or once or image_has_one, f"{name} has no healthcheck"
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == (
                "service_completed_successfully" if other == "redis-cluster" else "service_healthy"
            )
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert all(mounted.count(volume) == 1 for volume in COMPOSE["volumes"])
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published), "open to everybody"


def test_kafka_gets_what_our_topics_need() -> None:
    brokers = [SERVICES[name] for name in ("kafka-1", "kafka-2", "kafka-3")]
    assert len({broker["environment"]["KAFKA_NODE_ID"] for broker in brokers}) == 3
    for broker in brokers:
        settings = broker["environment"]
        assert settings["KAFKA_MIN_INSYNC_REPLICAS"] == 2
        assert settings["KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE"] == "false"
        assert settings["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{broker['hostname']}:9092"
        assert f"{settings['KAFKA_NODE_ID']}@{broker['hostname']}:9093" in settings["KAFKA_CONTROLLER_QUORUM_VOTERS"]


def test_prometheus_asks_where_metrics_are() -> None:
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    for job in yaml.safe_load(text)["scrape_configs"]:
        for found in job.get("dns_sd_configs", []):
            (service,) = found["names"]
            command = SERVICES[service]["command"]
            if command[0] == "serve":
                assert found["port"] == 8000
                continue
            assert {"--metrics-host=0.0.0.0", f"--metrics-port={found['port']}"} < set(command)
            assert f"127.0.0.1:{found['port']}/metrics" in SERVICES[service]["healthcheck"]["test"][-1]
    promtool = shutil.which("promtool")
    if promtool is not None:
        subprocess.run([promtool, "check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yml"], check=True)


def test_grafana_finds_prometheus_and_the_folder_of_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "croupier.yml").read_text())["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


def test_the_script_that_forms_the_cluster_is_a_script() -> None:
    subprocess.run(["sh", "-n", DEPLOY / "redis" / "form-cluster.sh"], check=True)
    nodes = [SERVICES[f"redis-{n}"]["networks"]["croupier"]["ipv4_address"] for n in range(1, 7)]
    assert SERVICES["redis-cluster"]["command"] == nodes


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (DEPLOY / "README.md").read_text()):
        assert (DEPLOY / target).exists(), target


def permissions_in_redis() -> list[str]:
    """The rules of croupier's user as the README says them."""
    shown = re.search(r"ACL SETUSER croupier (.*?)\n```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    return shown[1].replace("\\\n", " ").split()


def test_the_documented_permissions_are_those_of_the_compose_file() -> None:
    command = SERVICES["redis-1"]["command"]
    rules = command[command.index("croupier") + 1 :]
    kept = [rule for rule in permissions_in_redis() if rule[0] not in ">~"]
    assert [rule for rule in rules if rule[0] not in ">~"] == kept


def test_a_redis_started_as_compose_does_serves_the_store_and_nothing_else(tmp_path: Path) -> None:
    values = {"REDIS_ADMIN_PASSWORD": "admin", "REDIS_PASSWORD": "ours"}
    _, *arguments = [filled(argument, values) for argument in SERVICES["redis-1"]["command"]]
    (port,) = free_ports(1)
    server = Process(
        [executable(), *arguments, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)],
        tmp_path / "redis.log",
    )
    server.start()
    try:
        wait_for(lambda: accepts(port), "Redis listens")
        server.check()
        with Redis(port=port, password="admin") as admin:
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_for(lambda: admin.cluster("info")["cluster_state"] == "ok", "one node is a cluster")
        use_store(f"redis://croupier:ours@127.0.0.1:{port}/croupier")
        with Redis(port=port, username="croupier", password="ours") as ours:
            for command in (["FLUSHALL"], ["CONFIG", "GET", "*"], ["KEYS", "*"], ["GET", "other"], ["ACL", "LIST"]):
                with pytest.raises(NoPermissionError):
                    ours.execute_command(*command)
    finally:
        server.kill()


def use_store(url: str) -> None:
    """Everything that servers and learners do with a store."""
    store = open_store(url)
    store.create(Manifest("s", "l", 2, 1))
    store.commit(0, Commit(b"1" * 16, NOTHING, 1, 1, 1, b"delta"))
    store.commit(0, Commit(b"2" * 16, b"1" * 16, 2, 2, 2, b"delta"))
    assert [commit.head for commit in store.changes(0, b"1" * 16) or []] == [2]
    store.fold(0, b"2" * 16, {"a#0": b"part", "b#0": b"part"})
    store.fold(0, b"2" * 16, {}, drop=["b#0"])
    labelled = store.snapshot(0, "label")
    assert store.load_snapshot(labelled.name).parts == {"a#0": b"part"}
    store.drop_snapshot(labelled.name)
    assert store.load(0).parts == {"a#0": b"part"}
    assert store.get_blob(store.put_blob(b"graph")) == b"graph"
    store.drop_blobs(set(), put_before_ms=1 << 62)
    assert [head for _, head in store.lasts()] == [2, 0]
    assert store.size_bytes() > 0
    store.close()


def permissions_in_kafka() -> list[tuple[str, str]]:
    """(kind of resource, operation) of croupier's user as the README says them."""
    found = []
    for command in re.findall(r"kafka-acls .*?(?=\nkafka-acls|\n```)", (DEPLOY / "README.md").read_text(), re.DOTALL):
        kind = next(kind for kind in ("topic", "group", "cluster") if f"--{kind}" in command)
        found += [(kind, operation) for operation in re.findall(r"--operation (\w+)", command)]
    return found


def test_a_kafka_user_with_the_documented_permissions_can_do_it_all(tmp_path: Path) -> None:
    authorizer = {
        "authorizer_class_name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super_users": "User:ANONYMOUS",
    }
    with Broker(tmp_path / "kafka", listeners=("SASL_PLAINTEXT",), **authorizer) as broker:
        name = "shop"
        url = (
            f"kafka://{broker.address('SASL_PLAINTEXT')}/{name}?one_broker=yes&security_protocol=SASL_PLAINTEXT"
            f"&sasl_mechanism=PLAIN&sasl_plain_username={USER}&sasl_plain_password={PASSWORD}"
        )
        with pytest.raises(LogUnavailable):
            open_log(url, 2, write=True)
        allow(broker, name, permissions_in_kafka())
        log = open_log(url, 2, write=True)
        log.append([(0, b"a"), (1, b"b"), (CONTROL, b"c")])
        assert [record.data for record in log.read(0, 0)] == [b"a"]
        assert log.size_bytes() > 0
        log.trim(0, 1)
        assert log.ends() == [1, 1, 1]
        log.close()
        open_public_topics(parse_kafka_url(url), 2)
        learners = Membership(url)
        wait_for(lambda: learners.shards() == {0, 1}, "the group gives out the shards")
        learners.close()
        topic = RewardsTopic(parse_kafka_url(url))
        with contextlib.closing(kafka_producer(parse_kafka_url(url))) as producer:
            producer.send(f"{name}.rewards", b"{}").get(5)
            producer.send(f"{name}.dead-letters", b"{}").get(5)
        read: list[Any] = []
        wait_for(lambda: bool(read.extend(topic.poll(100)) or read), "the router reads a reward")
        topic.done(read)
        topic.close()


def allow(broker: Broker, name: str, permissions: list[tuple[str, str]]) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    prefixed, literal = ACLResourcePatternType.PREFIXED, ACLResourcePatternType.LITERAL
    admin.create_acls(
        [
            ACL(
                f"User:{USER}",
                "*",
                ACLOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()],
                ACLPermissionType.ALLOW,
                ResourcePattern(ResourceType.CLUSTER, "kafka-cluster", literal)
                if kind == "cluster"
                else ResourcePattern(ResourceType[kind.upper()], f"{name}.", prefixed),
            )
            for kind, operation in permissions
        ]
    )
    admin.close()
