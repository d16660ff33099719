"""`croupier router`."""

import logging
import signal
import sys
import threading
from types import FrameType

import click

from server.cli import Failed, Wrong
from server.settings import LOG_LEVELS


@click.command()
@click.option("--log", "log_url", metavar="URL", envvar="CROUPIER_LOG", help="The event log (kafka://...).")
@click.option("--store", "store_url", metavar="URL", envvar="CROUPIER_STORE", help="The parameter store (redis://...).")
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
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    default="info",
    show_default=True,
    envvar="CROUPIER_LOG_LEVEL",
    help="What is written to stderr.",
)
def router(log_url: str | None, store_url: str | None, metrics_host: str, metrics_port: int, log_level: str) -> None:
    """Take rewards from the Kafka topic NAME.rewards, as JSON, into the event log.

    Any number of routers share the topic's partitions. What cannot be taken goes to NAME.dead-letters with the
    reason. Ctrl-C or SIGTERM ends it in order; killed, it loses nothing. docs/router.md has the messages.

    \b
    Examples
      croupier router --log kafka://h1:9092,h2:9092/shop --store redis://h3:6379/shop
      CROUPIER_LOG=kafka://h1:9092/shop CROUPIER_STORE=redis://h3:6379/shop croupier router --metrics-port 9102
    """
    for url, name, scheme in ((log_url, "log", "kafka"), (store_url, "store", "redis")):
        if not url:
            raise Wrong(
                f"--{name} is missing: {scheme}://HOST:PORT/NAME, or CROUPIER_{name.upper()} in the environment."
            )
    assert log_url is not None
    assert store_url is not None
    if not log_url.startswith("kafka://"):
        raise Wrong(
            "--log must be kafka://...: the router reads a topic of Kafka; rewards of one machine go over HTTP."
        )
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s", stream=sys.stderr
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
        router_run.run(log_url, store_url, metrics_host, metrics_port, stop)
    except ValueError as error:
        raise Wrong(f"{error}.") from None
    except (StreamingError, OSError) as error:
        raise Failed(error) from None
