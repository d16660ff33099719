"""`croupier settings`."""

import click

from server.auth import ApiKeyError, new_key
from server.cli import Wrong
from server.settings import ABOUT, DEFAULTS, NAMES, PREFIX, flag, markdown, shown, type_name


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="The page of the documentation.")
@click.option(
    "--new-key", metavar="NAME:ROLES", help="Make an API key; roles are recommend, feedback, admin, joined by +."
)
def settings(as_markdown: bool, new_key: str | None) -> None:
    """List all settings of the server, or make an API key.

    \b
    Examples
      croupier settings
      croupier settings --new-key web:recommend+feedback
    """
    if new_key is not None:
        make_key(new_key)
    elif as_markdown:
        click.echo(markdown(), nl=False)
    else:
        click.echo(listing())


def make_key(text: str) -> None:
    name, _, roles = text.partition(":")
    try:
        secret, line = new_key(name, roles)
    except ApiKeyError as error:
        raise Wrong(error) from None
    click.echo(f"key, for the caller (it is not shown again): {secret}")
    click.echo(f'for the server\'s settings file:              api_keys = ["{line}"]')


def listing() -> str:
    lines = []
    for name in NAMES:
        about = ABOUT[name]
        facts = [type_name(name), f"default {shown(name, DEFAULTS[name])}", about.unit]
        facts.append(", ".join(about.choices) or about.range)
        lines.append(f"{name}   {flag(name)}   {PREFIX}{name.upper()}")
        lines.append(f"    {about.help}")
        lines.append(f"    {'; '.join(filter(None, facts))}")
    return "\n".join(lines)
