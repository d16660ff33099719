"""`croupier router`."""

import click

from server.cli import Failed, Wrong
from server.commands.apart import apart_options, apart_settings, told_to_end


@click.command()
@apart_options(port=9102)
def router(metrics_host: str, metrics_port: int, config: str | None, **flags: str | None) -> None:
    """Take rewards from the Kafka topic NAME.rewards, as JSON, into the event log.

    Any number of routers share the topic's partitions. What cannot be taken goes to NAME.dead-letters with the
    reason. Ctrl-C or SIGTERM ends it in order; killed, it loses nothing. docs/router.md has the messages.

    \b
    Examples
      croupier router --log kafka://h1:9092,h2:9092/shop --store redis://h3:6379/shop
      CROUPIER_LOG=kafka://h1:9092/shop CROUPIER_STORE=redis://h3:6379/shop croupier router --metrics-port 9102
    """
    settings = apart_settings(config, flags)
    from server import router_run
    from streaming.errors import StreamingError

    stop = told_to_end()
    try:
        router_run.run(settings.log, settings.store, metrics_host, metrics_port, stop)
    except ValueError as error:
        raise Wrong(f"{error}.") from None
    except (StreamingError, OSError) as error:
        raise Failed(error) from None
