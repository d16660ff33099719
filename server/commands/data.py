"""`croupier replay | export | import | doctor`: work on a data folder, with or without a server running on it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from server.cli import Failed
from server.commands.progress import Progress

DATA = click.option(
    "--data", type=click.Path(path_type=Path), default=Path("croupier-data"), show_default=True, help="The data folder."
)


def run(work: Callable[[Any], Any]) -> Any:
    """Does the work with progress on stderr; what the world did wrong becomes a sentence."""
    from streaming.errors import StreamingError

    try:
        with Progress() as progress:
            return work(progress)
    except (StreamingError, OSError) as error:
        raise Failed(error) from None


def show(report: Any) -> None:
    for line in report.lines():
        click.echo(line)


@click.command()
@DATA
def replay(data: Path) -> None:
    """Learn the whole kept log again and compare with the stored parameters, bit for bit. Only reads; a server may run.

    \b
    Example
      croupier replay --data /var/lib/croupier
    """
    from streaming import replay as _replay

    report = run(lambda progress: _replay.replay(data, progress))
    show(report)
    sys.exit(0 if report.equal else 1)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@DATA
def export(file: Path, data: Path) -> None:
    """Write everything a data folder knows to FILE, which must not exist yet. Only reads; a server may run.

    The file holds the signing keys, so that decisions made before count after an import: keep it as you keep those.

    \b
    Example
      croupier export backup.croupier --data /var/lib/croupier
    """
    from streaming import archive

    show(run(lambda progress: archive.export(data, file, progress)))


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@DATA
@click.option("--shards", type=click.IntRange(1, 1024), default=None, help="Another number of shards than it had.")
def import_(file: Path, data: Path, shards: int | None) -> None:
    """Make a new data folder from an export. This is also how the number of shards is changed.

    \b
    Example
      croupier import backup.croupier --data new-folder --shards 16
    """
    from streaming import archive

    show(run(lambda progress: archive.import_(file, data, shards, progress)))


@click.command()
@DATA
def doctor(data: Path) -> None:
    """Look at a data folder: what is there, what is kept and why, what is wrong and what to do. Only reads.

    \b
    Example
      croupier doctor --data /var/lib/croupier
    """
    from streaming import doctor as _doctor

    report = run(lambda progress: _doctor.doctor(data, progress))
    show(report)
    sys.exit(0 if report.ok else 1)
