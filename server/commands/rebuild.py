"""`croupier rebuild`."""

from typing import Any

import click

from server.commands.data import run, show
from server.commands.places import place_options


@click.command()
@place_options
@click.option("--shard", type=click.IntRange(0, 1023), default=None, help="This shard only.")
def rebuild(place: Any, shard: int | None) -> None:
    """Make the parameters anew from the oldest snapshot and the log. Servers and learners may go on meanwhile.

    Says of each shard from where it was rebuilt, and whether what was stored had differed. Takes as long as learning
    the kept log again.

    \b
    Examples
      croupier rebuild --data /var/lib/croupier
      croupier rebuild --log kafka://h1:9092/shop --store redis://h3:6379/shop --shard 3
    """
    from streaming import rebuild as _rebuild

    show(run(lambda progress: _rebuild.rebuild(place, None if shard is None else [shard], progress)))
