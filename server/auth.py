"""API keys: who may recommend, send feedback, administer.

A key is NAME:ROLES:SECRET in the settings; SECRET may stand there as `sha256=HEX` instead. In memory there is only the
SHA-256 of it. A plain hash is enough because secrets are long and random (`new_key` makes 256 bits; shorter than 16
characters is refused): there is no dictionary to try. All keys are compared, each in constant time, so the time says
neither which key was close nor how close.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from server import errors

ROLES = ("recommend", "feedback", "admin")
SECRET_MIN = 16


class ApiKeyError(ValueError):
    """A key that cannot be; the sentence never shows the secret."""


class ApiKey(NamedTuple):
    """`roles` with admin includes all; `digest` is the secret's SHA-256, 32 bytes."""

    name: str
    roles: frozenset[str]
    digest: bytes

    def may(self, role: str) -> bool:
        return role in self.roles or "admin" in self.roles


def parse_key(text: str) -> ApiKey:
    """A key from NAME:ROLES:SECRET.

    >>> parse_key("web:recommend+feedback:0123456789abcdef").may("feedback")
    True
    >>> parse_key("web:reader:0123456789abcdef")
    Traceback (most recent call last):
    server.auth.ApiKeyError: key 'web': 'reader' is not a role; roles are recommend, feedback, admin, joined by +.
    """
    name, _, rest = text.partition(":")
    roles_text, _, secret = rest.partition(":")
    if not name or not roles_text or not secret:
        raise ApiKeyError("a key is NAME:ROLES:KEY, for example web:recommend+feedback:SECRET.")
    roles = roles_text.split("+")
    for role in roles:
        if role not in ROLES:
            raise ApiKeyError(f"key {name!r}: {role!r} is not a role; roles are {', '.join(ROLES)}, joined by +.")
    return ApiKey(name, frozenset(roles), _digest(name, secret))


def _digest(name: str, secret: str) -> bytes:
    if secret.startswith("sha256="):
        try:
            digest = bytes.fromhex(secret.removeprefix("sha256="))
        except ValueError:
            digest = b""
        if len(digest) != 32:
            raise ApiKeyError(f"key {name!r}: sha256= must be followed by 64 hexadecimal digits.")
        return digest
    if len(secret) < SECRET_MIN:
        raise ApiKeyError(f"key {name!r}: is shorter than {SECRET_MIN} characters, so it could be guessed.")
    return hashlib.sha256(secret.encode()).digest()


def new_key(name: str, roles: str) -> tuple[str, str]:
    """A fresh secret and the line for the settings that knows only its hash."""
    secret = secrets.token_urlsafe(32)
    line = f"{name}:{roles}:sha256={hashlib.sha256(secret.encode()).hexdigest()}"
    parse_key(line)
    return secret, line


class Gate:
    """Checks the Authorization header against the keys; with no keys everyone is admin."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self.keys = tuple(keys)

    def admit(self, authorization: str | None, role: str | None) -> ApiKey | None:
        """The caller's key (None when the server runs open), or a 401 or 403 problem. Role None: any key will do."""
        if not self.keys:
            return None
        if authorization is None:
            raise errors.unauthorized("Send the header Authorization: Bearer KEY.")
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise errors.unauthorized("The Authorization header must be: Bearer KEY.")
        digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
        found: ApiKey | None = None
        for key in self.keys:  # no early end
            if hmac.compare_digest(digest, key.digest):
                found = key
        if found is None:
            raise errors.unauthorized("This key is not known here.")
        if role is not None and not found.may(role):
            raise errors.forbidden(
                f"The key {found.name!r} lacks the role {role}; it has {', '.join(sorted(found.roles))}."
            )
        return found
