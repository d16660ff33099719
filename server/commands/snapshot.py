"""`croupier snapshot ...` and `croupier restore`: keep what has been learned, and go back to it, over HTTP."""

import datetime
import sys
import time
from typing import Any
from urllib.parse import quote

import click

from server.cli import Failed
from server.commands.policy import JSON, Remote, on_server, path, report

WAIT_S = 0.2


def _path(label: str) -> str:
    return f"/v1/snapshots/{quote(label, safe='')}"


def _found(remote: Remote, label: str) -> dict[str, Any] | None:
    found = [each for each in remote.call("GET", "/v1/snapshots")["snapshots"] if each["label"] == label]
    return found[0] if found else None


@click.group()
def snapshot() -> None:
    """Keep what a running server's policies have learned, under a label; `croupier restore` goes back to it.

    \b
    Examples
      croupier snapshot take before-sale
      croupier snapshot list
      croupier restore headlines before-sale
      croupier snapshot delete before-sale
    """


@snapshot.command("list")
@on_server
def list_(url: str, key: str | None) -> None:
    """List the snapshots."""
    for info in Remote(url, key).call("GET", "/v1/snapshots")["snapshots"]:
        at = "-"
        if info["time_ms"] is not None:
            when = datetime.datetime.fromtimestamp(info["time_ms"] / 1000, datetime.UTC)
            at = when.strftime("%Y-%m-%d %H:%M:%S UTC")
        whole = "" if info["complete"] else f"   {info['copies']} of {info['shards']} shards have made their copy"
        click.echo(f"{info['label']:24} {at:24} {info['size_bytes']:14,} bytes{whole}")


@snapshot.command()
@click.argument("label")
@click.option("--wait", "wait_s", type=click.FloatRange(0), default=60.0, show_default=True, help="At most, seconds.")
@on_server
def take(label: str, wait_s: float, url: str, key: str | None) -> None:
    """Keep what all policies have learned by now under LABEL, and wait until every shard has made its copy.

    LABEL is 1 to 64 of a-z, 0-9, dot, underscore and hyphen. At most 16 are kept.
    """
    remote = Remote(url, key)
    remote.call("PUT", _path(label))
    deadline, said = time.monotonic() + wait_s, -1
    while True:
        info = _found(remote, label)
        if info is None:
            if time.monotonic() >= deadline:
                raise Failed(f"snapshot {label} is asked for, and not there yet: `croupier snapshot list` shows it.")
        elif info["complete"]:
            click.echo(f"snapshot {label} is complete ({info['size_bytes']:,} bytes)")
            return
        elif time.monotonic() >= deadline:
            raise Failed(
                f"snapshot {label} has copies of {info['copies']} of {info['shards']} shards after {wait_s:g} s; the "
                "others follow once their learners run: `croupier snapshot list` shows them."
            )
        elif info["copies"] != said:
            said = info["copies"]
            print(f"{said} of {info['shards']} shards have made their copy", file=sys.stderr, flush=True)
        time.sleep(WAIT_S)


@snapshot.command()
@click.argument("label")
@on_server
def delete(label: str, url: str, key: str | None) -> None:
    """Forget a snapshot."""
    report(Remote(url, key).call("DELETE", _path(label)), f"snapshot {label} is deleted")


@click.command()
@click.argument("name")
@click.argument("label")
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_server
def restore(name: str, label: str, yes: bool, url: str, key: str | None) -> None:
    """Put what policy NAME has learned back to snapshot LABEL.

    Its definition, items and graph stay as they are. What it has learned since is gone, unless you take a snapshot of
    that first; what was counted stays counted.

    \b
    Example
      croupier restore headlines before-sale
    """
    if not yes:
        click.confirm(
            f"Put policy {name} back to snapshot {label}, and forget what it learned since?", abort=True, err=True
        )
    remote = Remote(url, key)
    body = remote.call("POST", path(name, "restore"), json={"label": label}, headers={"Content-Type": JSON})
    report(body, f"policy {name} is back at snapshot {label}")
