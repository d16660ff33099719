"""Where a command works: a data folder, or a log and a store that are servers of their own."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from server.cli import Wrong

DEFAULT = Path("croupier-data")
COMMAND_LINE = click.core.ParameterSource.COMMANDLINE


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options --data, --log and --store; the command gets what they name as `place`, a `streaming.place.Place`."""

    @functools.wraps(command)
    def with_place(*args: Any, data: Path | None, log: str | None, store: str | None, **rest: Any) -> Any:
        return command(*args, place=chosen(click.get_current_context(), data, log, store), **rest)

    for option in (
        click.option("--store", metavar="URL", envvar="CROUPIER_STORE", help="The parameter store (redis://...)."),
        click.option("--log", metavar="URL", envvar="CROUPIER_LOG", help="The event log (kafka://...)."),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            envvar="CROUPIER_DATA",
            help=f"The data folder of one machine. [default: {DEFAULT}, where there is no --log]",
        ),
    ):
        with_place = option(with_place)
    return with_place


def chosen(context: click.Context, data: Path | None, log: str | None, store: str | None) -> Any:
    """The place that the options name; what stands on the command line wins over the environment."""
    from streaming.place import Place

    given = {name for name in ("data", "log", "store") if context.get_parameter_source(name) is COMMAND_LINE}
    if given == {"data"}:
        log = store = None
    elif "data" in given:
        raise Wrong("give either --data, or --log and --store: a data folder has its own log and store.")
    if (log is None) != (store is None):
        here, missing = ("--log", "--store") if store is None else ("--store", "--log")
        raise Wrong(
            f"{here} without {missing}: the two belong together (or CROUPIER_LOG and CROUPIER_STORE); neither means "
            "the data folder."
        )
    return Place(log, store) if log is not None and store is not None else Place.of_folder(data or DEFAULT)
