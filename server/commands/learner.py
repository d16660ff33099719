"""`croupier learner`."""

import click

from server.cli import Failed, Wrong
from server.commands.apart import apart_options, apart_settings, told_to_end

ONE_MACHINE = " On one machine `croupier serve` has a learner of its own."


@click.command()
@apart_options(port=9101)
@click.option("--snapshot-interval-s", metavar="S", default=None, help="Time between durable snapshots of a shard.")
@click.option("--keep-snapshots", metavar="N", default=None, help="Newest snapshots kept for each shard.")
@click.option(
    "--group-session-s",
    type=click.FloatRange(1, 300),
    default=None,
    envvar="CROUPIER_GROUP_SESSION_S",
    help="A learner not heard of for so long loses its shards to the others. [default: 6]",
)
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
    settings = apart_settings(config, flags, ONE_MACHINE)
    if not settings.log.startswith("kafka://"):
        raise Wrong("--log must be kafka://...: on one machine `croupier serve` has a learner of its own.")
    from server import learner_run
    from streaming.errors import StreamingError
    from streaming.place import Place
    from streaming.shard import UnknownRecord

    stop = told_to_end()
    place = Place(settings.log, settings.store)
    try:
        learner_run.run(place, settings, metrics_host, metrics_port, group_session_s, stop)
    except learner_run.WrongUrl as error:
        raise Wrong(error) from None
    except (StreamingError, UnknownRecord, OSError) as error:
        raise Failed(error) from None
