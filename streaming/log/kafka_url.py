"""`kafka://host1:9092,host2:9092/NAME?parameter=value`: what it says, and the clients that are made from it.

    NAME            `croupier` unless given; the topics are NAME.events, NAME.control, NAME.rewards, NAME.dead-letters,
                    the consumer groups NAME.learners and NAME.router
    replication=N   of topics that we create; unless given 3, or as many brokers as there are if they are fewer
    one_broker=yes  accepts topics of one replica: what that broker's disk loses is lost
    anything else   goes to the Kafka client as it is: security_protocol=SASL_SSL, sasl_mechanism=SCRAM-SHA-512,
                    sasl_plain_username=..., sasl_plain_password=..., ssl_cafile=..., session_timeout_ms=10000

Passwords in a URL are seen by everybody who sees the process's arguments: give such a URL by its environment variable
or settings file. No error text of ours shows them (`streaming.urls.mask`).
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from streaming.errors import LogUnavailable
from streaming.urls import holds_stray_user, mask

NAME = "croupier"
TIMEOUT_S = 3.0
"""How long a call waits for the brokers before it says that they are away."""
MESSAGE_BYTES = 8 << 20
"""The largest record; frames are cut at 1 MiB, control records may be longer."""
OWN = {"replication", "one_broker"}
FIXED = {
    "bootstrap_servers": "the hosts stand before the name",
    "group_id": "the groups are called after the name",
    "acks": "a record is acknowledged by all replicas in sync, or it may be lost",
    "enable_idempotence": "a producer that repeats itself would count rewards twice",
    "enable_auto_commit": "positions are kept in the store",
    "auto_offset_reset": "a position that is not there must be seen, not skipped",
    "isolation_level": "there are no transactions",
    "max_request_size": "frames have a fixed limit",
}

_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_WORDS = {"yes": True, "true": True, "1": True, "on": True, "no": False, "false": False, "0": False, "off": False}


@dataclass(frozen=True)
class KafkaUrl:
    """Where a log is and how it is spoken to. `settings` are the client's, as strings: see `client_settings`."""

    servers: tuple[str, ...]
    name: str
    settings: tuple[tuple[str, str], ...] = ()
    replication: int | None = None
    one_broker: bool = False

    @cached_property
    def events(self) -> str:
        """The topic of the data partitions."""
        return f"{self.name}.events"

    @cached_property
    def control(self) -> str:
        """The topic of the control partition."""
        return f"{self.name}.control"

    @cached_property
    def rewards(self) -> str:
        """The public topic, of plain JSON, that the router reads."""
        return f"{self.name}.rewards"

    @cached_property
    def dead_letters(self) -> str:
        """Where the router puts what it cannot take."""
        return f"{self.name}.dead-letters"

    @cached_property
    def learners(self) -> str:
        """The consumer group of the learners."""
        return f"{self.name}.learners"

    @cached_property
    def router(self) -> str:
        """The consumer group of the routers."""
        return f"{self.name}.router"

    @cached_property
    def shown(self) -> str:
        """The log's name for people: no parameters, so no secrets."""
        return f"kafka://{','.join(self.servers)}/{self.name}"

    def without_secrets(self, text: str) -> str:
        """`text` with every secret value of this URL hidden, wherever it stands."""
        for key, value in self.settings:
            if re.search("password|secret|token", key, re.IGNORECASE) and value:
                text = text.replace(value, "***")
        return mask(text)


def parse_kafka_url(url: str) -> KafkaUrl:
    """Raises ValueError with what is wrong and what to write instead; it shows no secrets.

    >>> at = parse_kafka_url("kafka://a:9092,b/shop?one_broker=yes&ssl_cafile=/ca.pem")
    >>> at.servers, at.events, at.one_broker, at.settings
    (('a:9092', 'b:9092'), 'shop.events', True, (('ssl_cafile', '/ca.pem'),))
    >>> parse_kafka_url("kafka://a").name
    'croupier'
    """
    parts = urlsplit(url)
    shown = mask(url)
    if parts.scheme != "kafka" or not parts.netloc:
        raise ValueError(f"{shown} is no address of a Kafka: write kafka://host1:9092,host2:9092/NAME")
    if "@" in parts.netloc or holds_stray_user(parts):
        raise ValueError(
            f"{shown}: Kafka takes no user before the hosts: write "
            "?security_protocol=SASL_SSL&sasl_mechanism=PLAIN&sasl_plain_username=...&sasl_plain_password=..."
        )
    servers = tuple(host if re.search(r":\d+$", host) else f"{host}:9092" for host in parts.netloc.split(",") if host)
    name = parts.path.strip("/") or NAME
    if not _NAME.fullmatch(name):
        raise ValueError(f"{shown}: the name may have letters, digits, '.', '_' and '-', at most 200 of them")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for key in given:
        if key in FIXED:
            raise ValueError(f"{shown}: {key} cannot be set: {FIXED[key]}")
    replication = given.get("replication")
    if replication is not None and not (replication.isdecimal() and int(replication) >= 1):
        raise ValueError(f"{shown}: replication={replication} is no number of replicas: write replication=3")
    one_broker = given.get("one_broker", "no").lower()
    if one_broker not in _WORDS:
        raise ValueError(f"{shown}: one_broker={one_broker} is neither yes nor no")
    settings = tuple((key, value) for key, value in given.items() if key not in OWN)
    at = KafkaUrl(servers, name, settings, int(replication) if replication else None, _WORDS[one_broker])
    if settings:
        _check(at, shown)
    return at


def _check(at: KafkaUrl, shown: str) -> None:
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

    clients = (KafkaConsumer, KafkaProducer, KafkaAdminClient)
    for key, value in at.settings:
        known = [client.DEFAULT_CONFIG[key] for client in clients if key in client.DEFAULT_CONFIG]
        if not known:
            raise ValueError(f"{shown}: neither croupier nor the Kafka client has a parameter {key}")
        try:
            _converted(key, value, known[0])
        except ValueError as error:
            raise ValueError(f"{shown}: {error}") from None


def _converted(key: str, value: str, default: object) -> object:
    """`value` as the type of the client's default."""
    if key == "api_version":
        return tuple(int(part) for part in value.split("."))
    if isinstance(default, bool):
        if value.lower() not in _WORDS:
            raise ValueError(f"{key} must be yes or no")
        return _WORDS[value.lower()]
    if isinstance(default, int | float):
        try:
            return int(value)
        except ValueError:
            raise ValueError(f"{key} must be a whole number") from None
    if default is None or isinstance(default, str):
        return value
    raise ValueError(f"{key} cannot be said in a URL")


def client_settings(at: KafkaUrl, defaults: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """What a client of these `defaults` is made with: `ours`, then what the URL says."""
    given = {key: _converted(key, value, defaults[key]) for key, value in at.settings if key in defaults}
    # The client waits up to 30 s before it tries a broker again; ours must be back at work within a second of it.
    usual = {
        "client_id": "croupier",
        "bootstrap_timeout_ms": int(TIMEOUT_S * 1000),
        "reconnect_backoff_max_ms": 500,
        "request_timeout_ms": 5000,
        "metadata_max_age_ms": 30_000,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }
    usual = {key: value for key, value in usual.items() if key in defaults}
    return {**usual, **ours, **given, "bootstrap_servers": list(at.servers)}


def kafka_consumer(at: KafkaUrl, **ours: Any) -> Any:
    """A `KafkaConsumer` that commits no offsets by itself and never skips; raises LogUnavailable."""
    from kafka import KafkaConsumer

    usual = {"enable_auto_commit": False, "auto_offset_reset": "none", "fetch_max_wait_ms": 50}
    with asking(at, "connect"):
        return _made(KafkaConsumer, client_settings(at, KafkaConsumer.DEFAULT_CONFIG, usual | ours))


def kafka_producer(at: KafkaUrl, **ours: Any) -> Any:
    """A `KafkaProducer`: idempotent, acknowledged by all replicas in sync within 3 s; raises LogUnavailable."""
    from kafka import KafkaProducer

    wait_ms = int(TIMEOUT_S * 1000)
    usual = {
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 0,
        "batch_size": 1 << 20,
        "max_request_size": MESSAGE_BYTES,
        "max_block_ms": wait_ms,
        "delivery_timeout_ms": wait_ms,
        "request_timeout_ms": wait_ms - 500,
    }
    with asking(at, "connect"):
        return _made(KafkaProducer, client_settings(at, KafkaProducer.DEFAULT_CONFIG, usual | ours))


def end_producer(producer: Any) -> None:
    """Ends a producer within a second or two, whatever it still holds.

    With records that cannot be sent its own `close` raises half way, and leaves its thread trying to send them.
    """
    with contextlib.suppress(Exception):
        producer.close(timeout=0.5)
        return
    with contextlib.suppress(Exception):
        producer._sender.force_close()
        producer.close(timeout=1)


def kafka_admin(at: KafkaUrl) -> Any:
    """A `KafkaAdminClient`; raises LogUnavailable."""
    from kafka import KafkaAdminClient

    with asking(at, "connect"):
        return _made(KafkaAdminClient, client_settings(at, KafkaAdminClient.DEFAULT_CONFIG, {}))


def _made(kind: Any, settings: dict[str, Any]) -> Any:
    """A client; when it cannot be made, nothing of it stays (by itself its thread would dial on for ever).

    The client says only that it took too long; why a connection failed (a wrong password, say) is in its log alone.
    """
    from kafka.net.compat import KafkaNetClient

    networks: list[Any] = []
    reasons = _Reasons()

    def network(**configs: Any) -> Any:
        networks.append(KafkaNetClient(**configs))
        return networks[-1]

    logging.getLogger("kafka.net.manager").addHandler(reasons)
    try:
        return kind(kafka_client=network, **settings)
    except BaseException as error:
        for each in networks:
            with contextlib.suppress(Exception):
                each.close()
        raise reasons.best(error) from None
    finally:
        logging.getLogger("kafka.net.manager").removeHandler(reasons)


class _Reasons(logging.Handler):
    """Keeps the exceptions that were logged."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Exception] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen += [each for each in record.args or () if isinstance(each, Exception)]

    def best(self, error: BaseException) -> BaseException:
        """The one that says most: a refused password, else the last that is more than a timeout, else `error`."""
        from kafka.errors import KafkaTimeoutError, RequestTimedOutError, SaslAuthenticationFailedError

        refused = [each for each in self.seen if isinstance(each, SaslAuthenticationFailedError)]
        others = [each for each in self.seen if not isinstance(each, KafkaTimeoutError | RequestTimedOutError)]
        return [error, *others, *refused][-1]


@contextlib.contextmanager
def asking(at: KafkaUrl, what: str) -> Iterator[None]:
    """Turns what the client raises in the block into LogUnavailable with a sentence; ours pass as they are.

    Settings that contradict each other are the URL's fault: ValueError.
    """
    from kafka.errors import AuthorizationError, KafkaConfigurationError, KafkaError, SaslAuthenticationFailedError

    _quiet()
    try:
        yield
    except KafkaConfigurationError as error:
        raise ValueError(at.without_secrets(f"{at.shown}: {error}")) from None
    except SaslAuthenticationFailedError as error:
        remedy = "check sasl_mechanism, user and password"
        raise LogUnavailable(_sentence(at, what, error, remedy)) from None
    except AuthorizationError as error:
        raise LogUnavailable(_sentence(at, what, error, "grant this user access to its topics and groups")) from None
    except (KafkaError, OSError, RuntimeError) as error:
        # A broker may hang up on a wrong password before the client, behind TLS, has read why.
        more = ", and user and password" if any(key == "sasl_mechanism" for key, _ in at.settings) else ""
        raise LogUnavailable(
            _sentence(at, what, error, f"check that the brokers run and can be reached{more}")
        ) from None


def _sentence(at: KafkaUrl, what: str, error: BaseException, remedy: str) -> str:
    said = str(error)[:300] or type(error).__name__
    return at.without_secrets(f"the event log {at.shown} cannot {what}: {said}: {remedy}; trying again is safe")


def _quiet() -> None:
    """The client logs every try of a connection as an error; we say once what is wrong. A level set for it is kept."""
    logger = logging.getLogger("kafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
