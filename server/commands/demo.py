"""`croupier demo`."""

import sys

import click


@click.command()
@click.option(
    "--duration", type=float, default=None, metavar="S", help="End after so many seconds; else Ctrl-C ends it."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address the demo's server listens on.")
@click.option("--port", type=int, default=0, help="Port of the demo's server; a free one unless given.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, another world.")
def demo(duration: float | None, host: str, port: int, seed: int) -> None:
    """See it learn: starts a server, makes two policies, sends simulated users, and shows the click rate leave random
    behind. Its data is temporary and gone at the end.

    \b
    Examples
      croupier demo
      croupier demo --duration 30
    """
    from server.demo import run_demo

    sys.exit(run_demo(duration, host, port, seed=seed))
