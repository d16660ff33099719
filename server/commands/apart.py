"""What `croupier learner` and `croupier router` have in common: processes beside servers, on Kafka and Redis."""

import logging
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import click

from server.cli import Wrong
from server.settings import LOG_LEVELS, Settings, SettingsError, environment


def apart_options(port: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of such a process; `port` is where its /metrics listens unless it is told otherwise."""
    first = (
        click.option("--log", metavar="URL", default=None, help="The event log (kafka://...), or CROUPIER_LOG."),
        click.option(
            "--store", metavar="URL", default=None, help="The parameter store (redis://...), or CROUPIER_STORE."
        ),
    )
    last = (
        click.option(
            "--metrics-host",
            default="127.0.0.1",
            show_default=True,
            envvar="CROUPIER_METRICS_HOST",
            help="Address that /metrics listens on.",
        ),
        click.option(
            "--metrics-port",
            type=click.IntRange(0, 65535),
            default=port,
            show_default=True,
            envvar="CROUPIER_METRICS_PORT",
            help="Port of /metrics; 0 takes a free one.",
        ),
        click.option("--log-level", type=click.Choice(LOG_LEVELS), default=None, help="What is written to stderr."),
        click.option(
            "--config", type=click.Path(), default=None, help="TOML file of settings, as for `croupier serve`."
        ),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(first + last):
            command = option(command)
        return command

    return add


def apart_settings(config: str | None, flags: dict[str, str | None], hint: str = "") -> Settings:
    """The settings, log and store among them, and logging set up; `hint` ends the sentence where a URL is missing."""
    try:
        settings = Settings.load(config, environment(), flags)
    except SettingsError as error:
        raise Wrong(error) from None
    for url, name, scheme in ((settings.log, "log", "kafka"), (settings.store, "store", "redis")):
        if not url:
            raise Wrong(
                f"--{name} is missing: {scheme}://HOST:PORT/NAME, or CROUPIER_{name.upper()} in the environment.{hint}"
            )
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s",
        stream=sys.stderr,
    )
    return settings


def told_to_end() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return stop
