"""`python -m server.reference`: writes the pages anew that are made from the code. A test compares."""

from collections.abc import Callable, Iterator
from pathlib import Path

import click

from server import error_table, metric_table, settings
from server.cli import cli

WIDTH = 100
HELP = list(cli.context_settings["help_option_names"])
HEAD = """# The command line

Every command with its help, as `croupier COMMAND --help` prints it. `python -m server.reference` makes this page.

Exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage or settings.
"""


def commands(
    command: click.Command = cli, name: str = "croupier", parent: click.Context | None = None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Each command below and with `command`, in the order of its help: (full name, command, context).

    >>> next(commands())[0]
    'croupier'
    """
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=HELP if parent is None else None,  # below, those of the parent
    )
    yield context.command_path, command, context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None, below
            yield from commands(found, below, context)


def command_line() -> str:
    """The page docs/reference/cli.md."""
    parts = [HEAD]
    for path, command, context in commands():
        parts.append(f"## {path}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/cli.md": command_line,
    "docs/reference/errors.md": error_table.markdown,
    "docs/reference/metrics.md": metric_table.markdown,
    "docs/settings.md": settings.markdown,
}


if __name__ == "__main__":
    for name, text in PAGES.items():
        (Path(__file__).resolve().parents[1] / name).write_text(text())
