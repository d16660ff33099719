"""`croupier metrics`."""

import click
from rich.console import Console
from rich.table import Table

from server.metric_table import METRICS, markdown


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="As docs/reference/metrics.md has them.")
def metrics(as_markdown: bool) -> None:
    """List every metric of servers, learners and routers: what it says, and what to do about it.

    \b
    Examples
      croupier metrics
      croupier metrics --markdown
    """
    if as_markdown:
        click.echo(markdown(), nl=False)
        return
    table = Table(box=None)
    for column in ("metric", "kind", "labels", "what it says", "what to do"):
        table.add_column(column, overflow="fold")
    for each in METRICS.values():
        table.add_row(each.name, each.kind, ", ".join(each.labels), each.says, each.do)
    Console().print(table)
