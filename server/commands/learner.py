"""`croupier learner`."""

import logging
import signal
import sys
import threading
from types import FrameType

import click

from server.cli import Failed, Wrong
from server.settings import LOG_LEVELS, Settings, SettingsError, environment


@click.command()
@click.option("--log", metavar="URL", default=None, help="The event log (kafka://...), or CROUPIER_LOG.")
@click.option("--store", metavar="URL", default=None, help="The parameter store (redis://...), or CROUPIER_STORE.")
@click.option("--snapshot-interval-s", metavar="S", default=None, help="Time between durable snapshots of a shard.")
@click.option("--keep-snapshots", metavar="N", default=None, help="Newest snapshots kept for each shard.")
@click.option(
    "--group-session-s",
    type=click.FloatRange(1, 300),
    default=None,
    envvar="CROUPIER_GROUP_SESSION_S",
    help="A learner not heard of for so long loses its shards to the others. [default: 6]",
)
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    envvar="CROUPIER_METRICS_HOST",
    help="Address that /metrics listens on.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=9101,
    show_default=True,
    envvar="CROUPIER_METRICS_PORT",
    help="Port of /metrics; 0 takes a free one.",
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default=None, help="What is written to stderr.")
@click.option("--config", type=click.Path(), default=None, help="TOML file of settings, as for `croupier serve`.")
def learner(
    group_session_s: float | None,
    metrics_host: str,
    metrics_port: int,
    config: str | None,
    **flags: str | None,
) -> None:
    """Learn from the event log into the parameter store, beside servers that run without a learner of their own.

    Any number of learners share the shards; one that ends or dies leaves its shards to the others. Ctrl-C or SIGTERM
    ends it in order; killed, it loses nothing.

    \b
    Examples
      croupier learner --log kafka://h1:9092,h2:9092/shop --store redis://h3:6379/shop
      CROUPIER_LOG=kafka://h1:9092/shop CROUPIER_STORE=redis://h3:6379/shop croupier learner --metrics-port 9101
    """
    try:
        settings = Settings.load(config, environment(), flags)
    except SettingsError as error:
        raise Wrong(error) from None
    for url, name, scheme in ((settings.log, "log", "kafka"), (settings.store, "store", "redis")):
        if not url:
            raise Wrong(
                f"--{name} is missing: {scheme}://HOST:PORT/NAME, or CROUPIER_{name.upper()} in the environment. On "
                "one machine `croupier serve` has a learner of its own."
            )
    if not settings.log.startswith("kafka://"):
        raise Wrong("--log must be kafka://...: on one machine `croupier serve` has a learner of its own.")
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s",
        stream=sys.stderr,
    )
    from server import learner_run
    from streaming.errors import StreamingError
    from streaming.place import Place
    from streaming.shard import UnknownRecord

    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    place = Place(settings.log, settings.store)
    try:
        learner_run.run(place, settings, metrics_host, metrics_port, group_session_s, stop)
    except learner_run.WrongUrl as error:
        raise Wrong(error) from None
    except (StreamingError, UnknownRecord, OSError) as error:
        raise Failed(error) from None
