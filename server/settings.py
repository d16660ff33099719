"""Settings: a TOML file, then the environment, then flags; the later one wins.

Each setting is one field of `Settings`, and everything about it stands there: name, type, default, unit, what is
allowed, what it does. `croupier serve --help`, the table in the documentation and the checks are all made from it.

    file     workers = 2                  keys are the field names; an unknown key stops the start
    env      CROUPIER_WORKERS=2
    flag     croupier serve --workers 2
"""

# ruff: noqa: RUF009 - `setting` makes a dataclass field, which is what may stand there.

import difflib
import ipaddress
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from server.auth import ApiKey, ApiKeyError, parse_key
from streaming.urls import mask

SHARDS_MAX = 1024

PREFIX = "CROUPIER_"
SCHEMES = {"log": ("kafka://",), "store": ("redis://", "rediss://")}
LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(ValueError):
    """A setting that cannot be: the sentence names it, its value, where it came from and what is allowed."""


class About(NamedTuple):
    """What a setting is, apart from its name, type and default."""

    help: str
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        low, high = (f"{bound:,.12g}" if math.isfinite(bound) else None for bound in (self.low, self.high))
        if low and high:
            return f"from {low} to {high}"
        return f"of at least {low}" if low else f"of at most {high}" if high else ""


def setting(
    default: Any, help: str, unit: str = "", low: float = -math.inf, high: float = math.inf, choices: Any = ()
) -> Any:
    return field(default=default, metadata={"about": About(help, unit, low, high, tuple(choices))})


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a server can be told, checked.

    >>> Settings.load(flags={"workers": "2"}).workers
    2
    >>> Settings.load(env={"CROUPIER_PORT": "80x"})
    Traceback (most recent call last):
    server.settings.SettingsError: setting port = '80x' (from CROUPIER_PORT): must be a whole number from 0 to 65,535.
    """

    host: str = setting("127.0.0.1", "Address to listen on. Anything but loopback needs api_keys (or allow_open).")
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", low=0, high=65535)
    workers: int = setting(1, "Processes that answer requests.", low=1, high=256)
    data: Path = setting(
        Path("croupier-data"),
        "Folder of the event log and the parameter store, unless `log` and `store` name others. One server runs on it.",
    )
    log: str = setting(
        "",
        "Event log of many machines: kafka://HOST:PORT,HOST:PORT/NAME?parameters of the Kafka client. Needs `store`.",
    )
    store: str = setting(
        "",
        "Parameter store of many machines: redis://USER:PASSWORD@HOST:PORT,HOST:PORT/NAME (rediss: TLS). Needs `log`; "
        "learners are then processes of their own (`croupier learner`).",
    )
    run_dir: Path | None = setting(
        None, "Folder of sockets and shared memory. Default: /dev/shm/croupier-ID, or DATA/run where that is too small."
    )
    shards: int = setting(
        0,
        "Shards the parameters are split into, fixed when the log is made. 0: what it has; where it is new, 1 in a "
        "data folder and 8 in Kafka.",
        low=0,
        high=SHARDS_MAX,
    )
    flush_ms: float = setting(
        10.0, "Decisions wait this long for their durable batch: what a killed worker may lose.", "ms", 0, 10_000
    )
    learner_poll_ms: float = setting(
        2.0, "The learner looks for new records this often when it has nothing to do.", "ms", 0.1, 10_000
    )
    snapshot_interval_s: float = setting(
        300.0, "Time between durable snapshots; the log is trimmed behind them.", "s", 1, 86_400
    )
    keep_snapshots: int = setting(2, "Newest snapshots kept for each shard.", low=1, high=1000)
    drain_s: float = setting(10.0, "On SIGTERM, requests under way get this long to finish.", "s", 0, 600)
    max_body_bytes: int = setting(
        4 << 20, "Largest JSON body; above it 413, also without Content-Length.", "bytes", 1024, 1 << 30
    )
    max_graph_bytes: int = setting(256 << 20, "Largest graph upload (npz).", "bytes", 1024, 1 << 34)
    max_batch: int = setting(1000, "Most requests or feedback rows in one call.", low=1, high=100_000)
    rate_limit_per_s: float = setting(
        0.0, "Requests a second for each key (or client address) and worker; 0 is no limit.", "1/s", 0, 1e9
    )
    rate_limit_burst: float = setting(
        100.0, "Requests a caller may send at once before rate_limit_per_s holds.", "requests", 1, 1e9
    )
    api_keys: tuple[ApiKey, ...] = setting(
        (),
        "Bearer keys, each NAME:ROLES:KEY; roles are recommend, feedback, admin, joined by +. KEY may be "
        "sha256=HEX, so that the file holds no secret (`croupier settings --new-key NAME:ROLES` makes both). "
        "A list in TOML, separated by commas elsewhere.",
    )
    allow_open: bool = setting(
        False, "Listen on an address that is not loopback without any API key: everyone who reaches it is admin."
    )
    log_level: str = setting("info", "What is written to stderr.", choices=LOG_LEVELS)
    access_log: bool = setting(False, "A line on stderr for every request; it slows the server down.")
    hot_path: bool = setting(
        True,
        "Answer recommend and feedback below FastAPI, with the same bytes and a fraction of the work; false "
        "sends them through the ordinary routes, and so does access_log.",
    )

    def __post_init__(self) -> None:
        if not (self.api_keys or self.allow_open or is_loopback(self.host)):
            raise SettingsError(
                f"setting host = {self.host!r}: is not a loopback address and there are no api_keys, so everyone who "
                "reaches it could change everything. Add api_keys (`croupier settings --new-key ops:admin` makes "
                "one), listen on 127.0.0.1, or set allow_open."
            )
        if bool(self.log) != bool(self.store):
            here, missing = ("log", "store") if self.log else ("store", "log")
            raise SettingsError(
                f"setting {missing}: is missing. {here} names one of many machines, so {missing} must too "
                f"({SCHEMES[missing][0]}...); without both, log and store are files in the data folder."
            )
        names = [key.name for key in self.api_keys]
        for name in names:
            if names.count(name) > 1:
                raise SettingsError(f"setting api_keys: the name {name!r} is there twice.")

    @classmethod
    def load(
        cls,
        file: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> "Settings":
        """Settings from a TOML file, an environment (none unless given: pass os.environ) and flags.

        Flags that are None were not given. Raises SettingsError.
        """
        env = env or {}
        values: dict[str, Any] = {}
        file = file or env.get(PREFIX + "CONFIG")
        if file:
            for name, value in read_toml(Path(file)).items():
                values[name] = parse(name, value, f"{file}")
        for name in NAMES:
            variable = PREFIX + name.upper()
            if variable in env:
                values[name] = parse(name, env[variable], variable)
        for name, value in (flags or {}).items():
            if value is not None:
                values[name] = parse(name, value, flag(name))
        return cls(**values)


NAMES = tuple(f.name for f in fields(Settings))
ABOUT: dict[str, About] = {f.name: f.metadata["about"] for f in fields(Settings)}
TYPES: dict[str, Any] = get_type_hints(Settings)
DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a host name: who knows what it resolves to tomorrow
        return False


def read_toml(path: Path) -> dict[str, Any]:
    """The file's table; an unreadable file, bad TOML or an unknown key raises SettingsError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {path}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path}: is not TOML: {error}.") from None
    for name in table:
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {close[0]}?" if close else "`croupier settings` lists all there are."
            raise SettingsError(f"setting {name} (from {path}): is not a setting; {hint}")
    return table


def parse(name: str, value: Any, source: str) -> Any:
    """The setting's value from what the file, the environment or a flag holds."""
    try:
        return _parse(name, value)
    except ApiKeyError as error:  # never shows the value: it is a secret
        raise SettingsError(f"setting {name} (from {source}): {error}") from None
    except ValueError as error:
        there = mask(repr(value)) if name in SCHEMES else repr(value)
        raise SettingsError(f"setting {name} = {there} (from {source}): must be {error}.") from None


def _parse(name: str, value: Any) -> Any:
    kind, about = TYPES[name], ABOUT[name]
    if name == "api_keys":
        return _keys(value)
    if kind is bool:
        return _bool(value)
    if kind is int or kind is float:
        return _number(kind, about, value)
    if name in SCHEMES:
        return _url(SCHEMES[name], value)
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("a text that is not empty")
    if about.choices and value not in about.choices:
        raise ValueError("one of " + ", ".join(about.choices))
    return str(value) if kind is str else Path(value)


def _url(schemes: tuple[str, ...], value: Any) -> str:
    if not isinstance(value, str) or (value and not value.startswith(schemes)):
        raise ValueError(f"a text that begins with {' or '.join(schemes)}")
    return value


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("true or false")


def _number(kind: type[int] | type[float], about: About, value: Any) -> int | float:
    what = ("a whole number " if kind is int else "a number ") + about.range
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(what)
    try:
        number = int(value) if kind is int and not isinstance(value, float) else float(value)
    except (ValueError, OverflowError):
        raise ValueError(what) from None
    if kind is int and isinstance(number, float):
        raise ValueError(what)
    if not about.low <= number <= about.high:  # also false for NaN
        raise ValueError(what)
    return number


def _keys(value: Any) -> tuple[ApiKey, ...]:
    if isinstance(value, str):
        value = [part for part in value.replace("\n", ",").split(",") if part.strip()]
    if not isinstance(value, Sequence) or not all(isinstance(part, str) for part in value):
        raise ApiKeyError("must be a list of texts NAME:ROLES:KEY.")
    return tuple(parse_key(part.strip()) for part in value)


def type_name(name: str) -> str:
    """How the table and the help call a setting's type."""
    if name == "api_keys":
        return "keys"
    if name in SCHEMES:
        return "URL"
    return {int: "integer", float: "number", bool: "boolean", str: "text"}.get(TYPES[name], "path")


def shown(name: str, value: Any) -> str:
    if name == "api_keys":
        return ", ".join(f"{key.name}:{'+'.join(sorted(key.roles))}" for key in value) or "none"
    if name in SCHEMES:
        return mask(value) or "none"
    if value is None:
        return "automatic"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


PAGE = """# Settings

This page is what `croupier settings --markdown` prints; a test compares them.

A server takes its settings from a TOML file (`croupier serve --config FILE`, or the variable `CROUPIER_CONFIG`), from
the environment, and from flags; the later one wins. `shards` is the key of the file, `CROUPIER_SHARDS` the variable and
`--shards` the flag. A value that cannot be, or a key in the file that is no setting, stops the start with a sentence
(exit status 2).

```toml
# croupier.toml
host = "0.0.0.0"
workers = 4
data = "/var/lib/croupier"
api_keys = ["web:recommend+feedback:sha256=...", "ops:admin:sha256=..."]
```

`croupier settings --new-key web:recommend+feedback` makes a key and the line that goes into the file. The file then
holds only the key's SHA-256; that is enough, because keys are 256 random bits and there is nothing to guess. A key may
also stand there in plain text, of at least 16 characters. Flags show in the list of processes: put keys, and a `log` or
`store` whose URL holds a password, into the file or the environment. No sentence of the server shows such a password.

"""


def markdown() -> str:
    """The page of the documentation: how settings are given, and all of them."""
    lines = ["| setting | type | default | unit | allowed | what it does |", "|---|---|---|---|---|---|"]
    for name in NAMES:
        about = ABOUT[name]
        allowed = ", ".join(about.choices) or about.range
        default = shown(name, DEFAULTS[name])
        lines.append(f"| `{name}` | {type_name(name)} | {default} | {about.unit} | {allowed} | {about.help} |")
    return PAGE + "\n".join(lines) + "\n"


def environment() -> Mapping[str, str]:
    """The process's own environment."""
    return os.environ
