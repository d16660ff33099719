"""Where a store in Redis is: `redis://[user:password@]host:port,host:port/NAME?redis-py's parameters`.

`rediss://` is TLS. Parameters keep redis-py's names (`ssl_ca_certs`, `socket_timeout`, ...) and are given to it.
"""

import inspect
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import Redis
from redis.connection import parse_url

from streaming.urls import holds_stray_user, mask

DEFAULT_NAME = "croupier"
DEFAULT_PORT = 6379
_OURS = {
    "host", "port", "connection_pool", "unix_socket_path", "ssl", "retry", "retry_on_timeout", "retry_on_error",
    "decode_responses", "encoding", "encoding_errors", "charset", "errors", "single_connection_client",
    "auto_close_connection_pool", "redis_connect_func", "credential_provider", "cache", "cache_config",
    "event_dispatcher", "maint_notifications_config", "protocol", "legacy_responses", "himport_registry",
}  # fmt: skip
"""What redis-py's client takes but this store decides, or what cannot be said in a URL."""


@dataclass(frozen=True)
class Address:
    """A parsed URL. Its text is fit for logs: user, password and parameters are left out."""

    hosts: tuple[tuple[str, int], ...]
    name: str
    options: dict[str, Any]
    """Keyword arguments of redis-py's clients."""

    def __str__(self) -> str:
        return f"Redis at {','.join(f'{host}:{port}' for host, port in self.hosts)}"

    def __repr__(self) -> str:
        return f"<{self}>"


def parse(url: str) -> Address:
    """The address a URL names. ValueError says what is wrong with it, without its secrets.

    >>> parse("redis://ann:secret@one,two:7000/films?socket_timeout=5")
    <Redis at one:6379,two:7000>
    >>> parse("redis://one?colour=red")
    Traceback (most recent call last):
    ValueError: redis://one: redis-py has no parameter 'colour', or not one for a URL: its Redis(...) has them
    """
    split = urlsplit(url)
    who, _, where = split.netloc.rpartition("@")
    if split.scheme not in ("redis", "rediss") or not where:
        raise ValueError(
            "a store in Redis is named redis://[user:password@]host:port,host:port/NAME (rediss:// for TLS)"
        )
    if holds_stray_user(split):
        raise ValueError(f"{mask(url)}: write / ? # and @ of a user and password as %2F %3F %23 and %40")
    hosts = tuple(_host(split.scheme, host) for host in where.split(","))
    shown = f"{split.scheme}://{where}"
    name = split.path.strip("/") or DEFAULT_NAME
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name):
        raise ValueError(f"{shown}: the name after the hosts may have letters, digits, '.', '_' and '-'")
    try:
        options = parse_url(f"redis://?{split.query}")  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from None
    known = inspect.signature(Redis).parameters
    for option in options:
        if option not in known or option in _OURS:
            raise ValueError(
                f"{shown}: redis-py has no parameter {option!r}, or not one for a URL: its Redis(...) has them"
            )
    user, _, password = who.partition(":")
    if user:
        options["username"] = unquote(user)
    if password:
        options["password"] = unquote(password)
    if split.scheme == "rediss":
        options["ssl"] = True
    return Address(hosts, name, options)


def _host(scheme: str, text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", text)
    if not found:
        raise ValueError(f"a host of the {scheme}:// URL is not host:port; / ? # in a password are %2F %3F %23")
    return found[1] or found[2], int(found[3] or DEFAULT_PORT)
