"""`croupier demo`."""

import os
import sys

import click


@click.command()
@click.option(
    "--duration", type=float, default=None, metavar="S", help="End after so many seconds; else Ctrl-C ends it."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address the demo's server listens on.")
@click.option("--port", type=int, default=0, help="Port of the demo's server; a free one unless given.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, another world.")
@click.option(
    "--open/--no-open", "page", default=None, help="Open the live page (on where a person sits at a display)."
)
def demo(duration: float | None, host: str, port: int, seed: int, page: bool | None) -> None:
    """See it learn: starts a server, makes two policies, sends simulated users, and shows the click rate leave random
    behind. Its data is temporary and gone at the end. The address that it prints first is the live page's.

    \b
    Examples
      croupier demo
      croupier demo --duration 30
    """
    from server.demo import run_demo

    if page is None:
        display = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
        page = display and sys.stdout.isatty() and not os.environ.get("CI")
    sys.exit(run_demo(duration, host, port, seed=seed, page=page))
