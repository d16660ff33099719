"""`croupier replay | export | import | doctor`: work on a data folder, or on a log and a store of many machines.

Servers and learners may be running there meanwhile.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from server.cli import Failed, Wrong
from server.commands.places import place_options
from server.commands.progress import Progress

if TYPE_CHECKING:
    from streaming.place import Place


def run(work: Callable[[Any], Any]) -> Any:
    """Does the work with progress on stderr; what the world did wrong becomes a sentence."""
    from streaming.errors import StreamingError

    try:
        with Progress() as progress:
            return work(progress)
    except (StreamingError, OSError) as error:
        raise Failed(error) from None
    except ValueError as error:  # a URL that cannot be
        raise Wrong(error) from None


def show(report: Any) -> None:
    for line in report.lines():
        click.echo(line)


@click.command()
@place_options
def replay(place: "Place") -> None:
    """Learn the whole kept log again and compare with the stored parameters, bit for bit. Only reads.

    \b
    Examples
      croupier replay --data /var/lib/croupier
      croupier replay --log kafka://h1:9092/shop --store redis://h2:6379/shop
    """
    from streaming import replay as _replay

    report = run(lambda progress: _replay.replay(place, progress))
    show(report)
    sys.exit(0 if report.equal else 1)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@place_options
def export(file: Path, place: "Place") -> None:
    """Write everything that is known to FILE, which must not exist yet. Only reads; servers may run.

    The file holds the signing keys, so that decisions made before count after an import: keep it as you keep those.

    \b
    Examples
      croupier export backup.croupier --data /var/lib/croupier
      croupier export backup.croupier --log kafka://h1:9092/shop --store redis://h2:6379/shop
    """
    from streaming import archive

    show(run(lambda progress: archive.export(place, file, progress)))


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@place_options
@click.option("--shards", type=click.IntRange(1, 1024), default=None, help="Another number of shards than it had.")
def import_(file: Path, place: "Place", shards: int | None) -> None:
    """Make a new data folder, or a new log and store, from an export.

    This is also how the number of shards is changed, and how one machine becomes many. Nothing may be there yet.

    \b
    Examples
      croupier import backup.croupier --data new-folder --shards 16
      croupier import backup.croupier --log kafka://h1:9092/shop --store redis://h2:6379/shop
    """
    from streaming import archive

    show(run(lambda progress: archive.import_(file, place, shards, progress)))


@click.command()
@place_options
def doctor(place: "Place") -> None:
    """Look: what is there, what is kept and why, what is wrong and what to do. Only reads; servers may run.

    \b
    Examples
      croupier doctor --data /var/lib/croupier
      croupier doctor --log kafka://h1:9092/shop --store redis://h2:6379/shop
    """
    from streaming import doctor as _doctor

    report = run(lambda progress: _doctor.doctor(place, progress))
    show(report)
    sys.exit(0 if report.ok else 1)
