"""The real parts are what other tests take them for: durable after kill -9, failing over, breakable from outside."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.parts.host import unavailable, wait_for
from tests.parts.kafka import PASSWORD, USER, Broker, client
from tests.parts.proxy import Proxy
from tests.parts.redis import Cluster, Single

pytestmark = pytest.mark.xdist_group("parts")


def make_topic(broker: Broker, name: str) -> None:
    with client(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        admin.create_topics([NewTopic(name=name, num_partitions=2, replication_factor=1)])


def values(bootstrap: str, topic: str, count: int, **security: Any) -> list[bytes]:
    """The first ``count`` values of partition 0, read from its beginning."""
    found: list[bytes] = []
    with client(KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", **security)) as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        deadline = time.monotonic() + 20
        while len(found) < count and time.monotonic() < deadline:
            found += [record.value for records in consumer.poll(200).values() for record in records]
    return found


def test_a_killed_broker_keeps_what_it_acknowledged_over_a_restart(kafka: Broker) -> None:
    make_topic(kafka, "kept")
    sent = [b"%d" % i for i in range(200)]
    with client(KafkaProducer(bootstrap_servers=kafka.bootstrap)) as producer:
        waiting = [producer.send("kept", value, partition=0) for value in sent]
        assert [each.get(10).offset for each in waiting] == list(range(200))
        before = kafka.process.pid
        kafka.kill()
        assert not kafka.process.alive
        kafka.restart()
        assert kafka.process.pid != before
        # the same producer goes on by itself, its sequence numbers still fit
        assert producer.send("kept", b"after", partition=0).get(20).offset == 200
    assert values(kafka.bootstrap, "kept", 201) == [*sent, b"after"]


def test_a_paused_broker_acknowledges_nothing_until_it_goes_on(kafka: Broker) -> None:
    make_topic(kafka, "paused")
    with client(KafkaProducer(bootstrap_servers=kafka.bootstrap)) as producer:
        producer.send("paused", b"0", partition=0).get(10)
        kafka.pause()
        try:
            waiting = producer.send("paused", b"1", partition=0)
            time.sleep(1.5)
            assert not waiting.is_done
        finally:
            kafka.resume()
        assert waiting.get(10).offset == 1


def test_every_entrance_of_a_broker_leads_to_the_same_log(tmp_path: Path) -> None:
    with Broker(tmp_path / "kafka", listeners=("PROXY", "SSL", "SASL_PLAINTEXT", "SASL_SSL")) as broker:
        make_topic(broker, "entrances")
        password = {"sasl_mechanism": "PLAIN", "sasl_plain_username": USER, "sasl_plain_password": PASSWORD}
        entrances: dict[str, dict[str, str]] = {
            "PROXY": {},
            "SSL": {"ssl_cafile": broker.ca_file},
            "SASL_PLAINTEXT": password,
            "SASL_SSL": {"ssl_cafile": broker.ca_file} | password,
        }
        for i, (name, settings) in enumerate(entrances.items()):
            security = settings if name == "PROXY" else settings | {"security_protocol": name}
            with client(KafkaProducer(bootstrap_servers=broker.address(name), **security)) as producer:
                assert producer.send("entrances", name.encode(), partition=0).get(10).offset == i
            assert values(broker.address(name), "entrances", i + 1, **security)[-1] == name.encode()
        assert broker.proxy is not None
        assert broker.proxy.connections > 0
        with client(KafkaProducer(bootstrap_servers=broker.address("PROXY"))) as producer:
            producer.send("entrances", b"warm", partition=1).get(10)
            broker.proxy.stall()
            waiting = producer.send("entrances", b"held", partition=1)
            time.sleep(0.5)
            assert not waiting.is_done
            broker.proxy.pass_through()
            assert waiting.get(10).offset == 1


def cluster_client(cluster: Cluster) -> "RedisCluster":
    node = cluster.live[0]
    return RedisCluster(host="127.0.0.1", port=node.client_port, username=node.user, password=node.password)


def test_a_replica_takes_over_a_killed_master_and_the_master_comes_back_as_a_replica(redis_cluster: Cluster) -> None:
    store = cluster_client(redis_cluster)
    try:
        keys = [f"failover-{i}" for i in range(50)]
        for key in keys:
            store.set(key, key)
        redis_cluster.wait_ok()  # replication is asynchronous: in sync before the kill
        dead = redis_cluster.kill_master(keys[0])
        assert redis_cluster.trouble()
        redis_cluster.wait_ok()
        assert redis_cluster.master_of(keys[0]) is not dead
        wait_for(lambda: reads(store, keys), "a client reads every key after the failover")
        redis_cluster.restart(dead)
        redis_cluster.wait_ok()
        assert dead.admin.info("replication")["role"] == "slave"
    finally:
        store.close()
        redis_cluster.heal()


def reads(store: "RedisCluster", keys: list[str]) -> bool:
    try:
        return [store.get(key) for key in keys] == [key.encode() for key in keys]
    except RedisError:
        return False


def test_a_paused_master_is_replaced_and_joins_again(redis_cluster: Cluster) -> None:
    paused = redis_cluster.master_of("paused")
    try:
        redis_cluster.pause(paused)
        redis_cluster.wait_ok()
        assert redis_cluster.master_of("paused") is not paused
    finally:
        redis_cluster.heal()
    assert paused.admin.info("replication")["role"] == "slave"


def test_clients_of_a_cluster_reach_each_node_through_its_proxy(redis_cluster: Cluster) -> None:
    store = cluster_client(redis_cluster)
    try:
        store.set("proxied", "1")
        proxy = redis_cluster.master_of("proxied").proxy
        assert proxy is not None
        assert {node.port for node in store.get_nodes()} == {node.client_port for node in redis_cluster.nodes}
        proxy.delay(60)
        began = time.monotonic()
        assert store.get("proxied") == b"1"
        assert time.monotonic() - began >= 0.12
        proxy.refuse()
        with pytest.raises(RedisError):
            store.get("proxied")
    finally:
        store.close()
        redis_cluster.heal()


def test_a_cluster_behind_tls_with_an_acl_user(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", tls=True, user="croupier", password="pass") as cluster:
        assert cluster.url.startswith("rediss://croupier:pass@127.0.0.1:")
        trusted: dict[str, Any] = {"ssl": True, "ssl_ca_certs": cluster.ca_file}
        port = cluster.nodes[0].client_port
        store = RedisCluster(host="127.0.0.1", port=port, username="croupier", password="pass", **trusted)
        for i in range(20):
            store.set(f"tls-{i}", i)
        store.close()


def test_a_single_redis_keeps_its_data_its_password_and_its_bound(tmp_path: Path) -> None:
    options = {"appendonly": "yes", "appendfsync": "always", "maxmemory": "16mb", "maxmemory_policy": "noeviction"}
    with Single(tmp_path / "redis", tls=True, user="croupier", password="pass", **options) as single:
        with Redis.from_url(single.url) as store:
            store.set("kept", "1")
            single.kill()
        single.restart()
        with Redis.from_url(single.url) as store:
            assert store.get("kept") == b"1"
            with pytest.raises(OutOfMemoryError):
                store.set("large", b"x" * 17_000_000)
        wrong = single.url.replace("croupier:pass", "croupier:wrong")
        with Redis.from_url(wrong) as store, pytest.raises(AuthenticationError):
            store.ping()


def test_a_proxy_delays_stalls_resets_and_refuses(redis_single: Single) -> None:
    with Proxy(redis_single.port) as proxy:
        with Redis(port=proxy.port, socket_timeout=0.3, retry=None) as store:
            assert store.ping()
            proxy.stall()
            with pytest.raises(RedisTimeoutError):
                store.ping()
            proxy.pass_through()
            assert store.ping()
        with socket.create_connection(("127.0.0.1", proxy.port)) as raw:
            raw.sendall(b"PING\r\n")
            assert raw.recv(16) == b"+PONG\r\n"
            proxy.delay(50)
            began = time.monotonic()
            raw.sendall(b"PING\r\n" * 100)
            assert raw.recv(700, socket.MSG_WAITALL) == b"+PONG\r\n" * 100
            assert time.monotonic() - began >= 0.1
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                raw.recv(1)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))
        proxy.pass_through()
        socket.create_connection(("127.0.0.1", proxy.port)).close()


def test_a_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    """A pytest that is killed leaves no server behind."""
    code = (
        "import sys, time; from pathlib import Path; from tests.parts.host import Process\n"
        "server = Process(['sleep', '60'], Path(sys.argv[1])); server.start(); "
        "print(server.pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    with starter:
        assert starter.stdout is not None
        server = Path("/proc") / starter.stdout.readline().decode().strip()
        wait_for(lambda: (server / "cmdline").read_bytes().startswith(b"sleep"), "the server runs")
        starter.kill()
    wait_for(lambda: not (server / "cmdline").exists() or not (server / "cmdline").read_bytes(), "the server is gone")


def test_without_a_part_a_laptop_skips_and_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such part"):
        unavailable("no such part")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI needs the real part: no such part"):
        unavailable("no such part")
