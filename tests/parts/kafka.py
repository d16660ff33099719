"""A real Apache Kafka broker (KRaft: broker and controller in one process) from the jars that its project publishes."""

import fcntl
import hashlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from tests.parts.host import CACHE, Certificate, Process, accepts, free_ports, unavailable, wait_for
from tests.parts.proxy import Proxy

POM = Path(__file__).with_name("pom.xml")
CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"
READY_TOPIC = "croupier-tests-ready"
USER, PASSWORD = "croupier", "not-a-secret"
JAVA = ["java", "-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]

# One broker alone: every internal topic has one replica and few partitions, and groups form without the 3 s of waiting.
DEFAULTS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "num.partitions": "8",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "log.cleaner.dedupe.buffer.size": "2097152",
    "num.network.threads": "2",
    "num.io.threads": "2",
    "queued.max.requests": "100",
    # A broker that was killed is let in again when its old session has ended: 9 s unless we say so.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "200",
}


class Broker:
    """``Broker(folder).start()``, then ``bootstrap``; keywords are server properties with ``_`` for ``.``.

    ``listeners`` adds entrances beside the plain one, each with its own ``address(NAME)``: ``PROXY`` (plain, through
    ``self.proxy``, which delays, stalls, resets or refuses), ``SSL``, ``SASL_PLAINTEXT`` and ``SASL_SSL`` (mechanism
    PLAIN, USER and PASSWORD; ``ca_file`` is the certificate to trust). Data and ports stay the same over ``restart()``.
    """

    def __init__(self, folder: Path, listeners: tuple[str, ...] = (), **overrides: str | int) -> None:
        self.folder = folder
        self.proxy: Proxy | None = None
        self.certificate: Certificate | None = None
        names = ("PLAINTEXT", "CONTROLLER", *listeners)
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.overrides = {name.replace("_", "."): str(value) for name, value in overrides.items()}
        self.started_in_s = float("nan")
        self._process: Process | None = None

    @property
    def bootstrap(self) -> str:
        return self.address("PLAINTEXT")

    def address(self, listener: str) -> str:
        """``127.0.0.1:PORT`` that clients of this listener dial."""
        if listener == "PROXY":
            assert self.proxy is not None, "no PROXY listener, or the broker was not started"
            return self.proxy.address
        return f"127.0.0.1:{self.ports[listener]}"

    @property
    def ca_file(self) -> str:
        assert self.certificate is not None, "no SSL listener, or the broker was not started"
        return str(self.certificate.certificate)

    @property
    def process(self) -> Process:
        assert self._process is not None, "the broker was never started"
        return self._process

    def start(self, timeout_s: float = 90.0) -> "Broker":
        """Return once the cluster is described and a produce was acknowledged."""
        began = time.monotonic()
        if self._process is None:
            libs = fetched_jars()
            template = formatted_template(libs)
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copytree(template, self.folder / "data")
            settings = self.folder / "server.properties"
            settings.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
            self._process = Process(
                [*JAVA, "-cp", f"{libs}/*", "kafka.Kafka", str(settings)], self.folder / "broker.log"
            )
        self._process.start()
        wait_for(self._listens, "the Kafka broker listens", timeout_s)
        wait_for(self._works, "the Kafka broker acknowledges a record", timeout_s)
        self.started_in_s = time.monotonic() - began
        return self

    def kill(self) -> None:
        self.process.kill()

    def restart(self) -> None:
        """Start again on the same ports and data; a broker that still runs is killed first."""
        if self.process.alive:
            self.kill()
        self.start()

    def pause(self) -> None:
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def stop(self) -> None:
        """A clean end (SIGTERM) of the broker and its proxy."""
        if self._process is not None:
            self._process.stop()
        if self.proxy is not None:
            self.proxy.close()
            self.proxy = None

    def close(self) -> None:
        """An end as fast as can be, for data that nobody reads again."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    def __enter__(self) -> "Broker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _properties(self) -> dict[str, str]:
        if "PROXY" in self.ports:
            self.proxy = Proxy(self.ports["PROXY"])
        securities = {name: "PLAINTEXT" if name in ("CONTROLLER", "PROXY") else name for name in self.ports}
        found = DEFAULTS | {
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in self.ports.items()),
            "advertised.listeners": ",".join(
                f"{name}://{self.address(name)}" for name in self.ports if name != "CONTROLLER"
            ),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in securities.items()),
            # A quorum named here, not in the formatted data, lets one template serve every choice of ports.
            "controller.quorum.voters": f"1@{self.address('CONTROLLER')}",
            "log.dirs": str(self.folder / "data"),
        }
        if any(name.endswith("SSL") for name in self.ports):
            self.certificate = Certificate.make(self.folder / "tls")
            found |= {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(self.certificate.both)}
        for name in (name for name in self.ports if name.startswith("SASL")):
            module = "org.apache.kafka.common.security.plain.PlainLoginModule"
            found["sasl.enabled.mechanisms"] = "PLAIN"
            found[f"listener.name.{name.lower()}.plain.sasl.jaas.config"] = (
                f'{module} required username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}";'
            )
        return found | self.overrides

    def _listens(self) -> bool:
        self.process.check()
        return accepts(self.ports["PLAINTEXT"])

    def _works(self) -> bool:
        self.process.check()
        return acknowledges(self.bootstrap)


def acknowledges(bootstrap: str) -> bool:
    """Whether the broker describes its cluster and stores a record (in a topic that is there for this alone)."""
    try:
        with client(KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=5000)) as admin:
            if not admin.describe_cluster()["brokers"]:
                return False
            with suppress(TopicAlreadyExistsError):
                admin.create_topics([NewTopic(name=READY_TOPIC, num_partitions=1, replication_factor=1)])
        with client(KafkaProducer(bootstrap_servers=bootstrap, bootstrap_timeout_ms=5000)) as producer:
            producer.send(READY_TOPIC, b"ready").get(5)
    except KafkaError:
        return False
    return True


@contextmanager
def client(made):  # type: ignore[no-untyped-def]
    """Close a client of kafka-python at the end of the block."""
    try:
        yield made
    finally:
        made.close()


def fetched_jars() -> Path:
    """The folder of jars, fetched by Maven once per pom.xml however many processes ask."""
    jars = CACHE / f"kafka-libs-{hashlib.sha256(POM.read_bytes()).hexdigest()[:8]}"
    if jars.is_dir() and java_major() >= 17:
        return jars
    if java_major() < 17:
        unavailable("Kafka 4 needs Java 17 or newer on the PATH (Debian: apt-get install openjdk-17-jre-headless)")
    if shutil.which("mvn") is None:
        unavailable("no mvn to fetch Kafka's jars with (Debian: apt-get install maven)")
    with locked("kafka-libs"):
        if not jars.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
                copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={temporary}/libs"]
                done = subprocess.run(["mvn", "-B", "-q", "-f", str(POM), *copy], capture_output=True, text=True)
                if done.returncode:
                    unavailable(f"Maven could not fetch Kafka's jars: {(done.stdout + done.stderr)[-500:]}")
                (Path(temporary) / "libs").rename(jars)
    return jars


def formatted_template(libs: Path) -> Path:
    """A formatted, empty data folder that each broker copies; it holds no port and no path."""
    template = CACHE / libs.name.replace("libs", "formatted")
    with locked("kafka-formatted"):
        if not template.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
                data, settings = Path(temporary) / "data", Path(temporary) / "server.properties"
                lines = DEFAULTS | {
                    "listeners": "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093",
                    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
                    "controller.quorum.voters": "1@127.0.0.1:9093",
                    "log.dirs": str(data),
                }
                settings.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
                tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(settings)]
                subprocess.run([*JAVA, "-cp", f"{libs}/*", *tool], check=True, capture_output=True)
                data.rename(template)
    return template


def java_major() -> int:
    """The version of ``java`` on the PATH, 0 when there is none."""
    if shutil.which("java") is None:
        return 0
    text = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', text)
    return int(found[1]) if found else 0


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time, of all that use this cache folder."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
