"""`croupier router`."""

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
    default=9102,
    show_default=True,
    envvar="CROUPIER_METRICS_PORT",
    help="Port of /metrics; 0 takes a free one.",
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default=None, help="What is written to stderr.")
@click.option("--config", type=click.Path(), default=None, help="TOML file of settings, as for `croupier serve`.")
def router(metrics_host: str, metrics_port: int, config: str | None, **flags: str | None) -> None:
    """Take rewards from the Kafka topic NAME.rewards, as JSON, into the event log.

    Any number of routers share the topic's partitions. What cannot be taken goes to NAME.dead-letters with the
    reason. Ctrl-C or SIGTERM ends it in order; killed, it loses nothing. docs/router.md has the messages.

    \b
    Examples
      croupier router --log kafka://h1:9092,h2:9092/shop --store redis://h3:6379/shop
      CROUPIER_LOG=kafka://h1:9092/shop CROUPIER_STORE=redis://h3:6379/shop croupier router --metrics-port 9102
    """
    try:
        settings = Settings.load(config, environment(), flags)
    except SettingsError as error:
        raise Wrong(error) from None
    for url, name, scheme in ((settings.log, "log", "kafka"), (settings.store, "store", "redis")):
        if not url:
            raise Wrong(
                f"--{name} is missing: {scheme}://HOST:PORT/NAME, or CROUPIER_{name.upper()} in the environment."
            )
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s",
        stream=sys.stderr,
    )
    from server import router_run
    from streaming.errors import StreamingError

    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        router_run.run(settings.log, settings.store, metrics_host, metrics_port, stop)
    except ValueError as error:
        raise Wrong(f"{error}.") from None
    except (StreamingError, OSError) as error:
        raise Failed(error) from None
