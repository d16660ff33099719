"""`croupier serve`."""

import gc
import sys
from collections.abc import Callable
from typing import Any

import click

from server.cli import Wrong
from server.lean import without_scipy
from server.settings import ABOUT, DEFAULTS, NAMES, PREFIX, TYPES, Settings, SettingsError, environment, flag, shown


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each setting; its value is parsed and checked by Settings alone."""
    for name in reversed(NAMES):
        about = ABOUT[name]
        allowed = ", ".join(about.choices) or about.range
        facts = [f"default {shown(name, DEFAULTS[name])}{' ' + about.unit if about.unit else ''}", allowed]
        help = f"{about.help} [{'; '.join(filter(None, facts))}]"
        declaration = f"{flag(name)}/--no-{flag(name)[2:]}" if TYPES[name] is bool else flag(name)
        metavar = None if TYPES[name] is bool else (about.unit or name.rsplit("_", 1)[-1]).upper()
        command = click.option(declaration, name, default=None, help=help, metavar=metavar)(command)
    return command


@click.command()
@click.option("--config", type=click.Path(), default=None, help=f"TOML file of settings (or {PREFIX}CONFIG).")
@setting_options
def serve(config: str | None, **flags: Any) -> None:
    """Run a server.

    With no option at all it listens on http://127.0.0.1:8000 and keeps its data in ./croupier-data; /docs there
    explains the API. Ctrl-C or SIGTERM stops it in order.

    With --log and --store it is one of any number of servers that share a Kafka and a Redis; `croupier learner`
    processes learn for all of them.

    \b
    Examples
      croupier serve
      croupier serve --workers 4 --data /var/lib/croupier
      croupier serve --config croupier.toml          each option below is a key of that file
      CROUPIER_WORKERS=4 croupier serve              or a variable of the environment
      croupier serve --log kafka://h1:9092,h2:9092/shop --store redis://h3:6379,h4:6379/shop
      croupier serve --host 0.0.0.0 --api-keys web:recommend+feedback:SECRET,ops:admin:SECRET

    What comes later wins: defaults, file, environment, options.
    """
    try:
        settings = Settings.load(config, environment(), flags)
    except SettingsError as error:
        raise Wrong(error) from None
    gc.disable()  # for the imports, of which nothing goes away; the supervisor enables it again
    with without_scipy():
        from server import supervisor  # after the checks: a typing mistake is answered at once

    sys.exit(supervisor.run(settings))
