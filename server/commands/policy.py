"""`croupier policy ...`: the policies of a running server, over HTTP."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx

from server.cli import Failed, Wrong

JSON = "application/json"


class Remote:
    """A running server."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def call(self, method: str, path: str, **more: Any) -> Any:
        """The answer's JSON; what is refused or unreachable becomes a sentence."""
        headers = {**self.headers, **more.pop("headers", {})}
        try:
            answer = httpx.request(method, f"{self.url}{path}", headers=headers, timeout=60, **more)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Failed(f"no server at {self.url} ({error}); start one, or say where with --url.") from None
        try:
            body = answer.json()
        except ValueError:
            raise Failed(f"{self.url} answered {answer.status_code}, and not as croupier does.") from None
        if answer.is_success:
            return body
        field = f" ({body['field']})" if body.get("field") else ""
        raise Failed(f"{body.get('title', answer.status_code)}{field}: {body.get('detail', '')}")


def on_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --url and --key."""
    command = click.option("--key", envvar="CROUPIER_KEY", show_envvar=True, help="An API key with the role admin.")(
        command
    )
    return click.option(
        "--url", envvar="CROUPIER_URL", default="http://127.0.0.1:8000", show_default=True, show_envvar=True,
        help="The server.",
    )(command)  # fmt: skip


def path(name: str, *more: str) -> str:
    return "/".join(["/v1/policies", quote(name, safe=""), *more])


def read_definition(text: str) -> bytes:
    """JSON as it was given: itself, @FILE, or - for stdin."""
    try:
        text = sys.stdin.read() if text == "-" else Path(text[1:]).read_text() if text.startswith("@") else text
        return json.dumps(json.loads(text)).encode()
    except OSError as error:
        raise Failed(error) from None
    except ValueError as error:
        raise Wrong(f"the definition is not JSON: {error}.") from None


def report(body: Any, done: str) -> None:
    if not body["shown"]:
        done += "; it is on its way to all workers"
    click.echo(f"{done} (version {body['version']})")


def show_json(body: Any) -> None:
    click.echo(json.dumps(body, indent=2, ensure_ascii=False))


@click.group()
def policy() -> None:
    """Make, show, change and delete the policies of a running server.

    \b
    Examples
      croupier policy put headlines '{"algorithm": "banker", "arms": ["a", "b", "c"]}'
      croupier policy put films @films.json
      croupier policy graph films graph.npz
      croupier policy patch headlines '{"reward": {"window": "1h"}}'
      croupier policy show headlines
    """


@policy.command("list")
@on_server
def list_(url: str, key: str | None) -> None:
    """List all policies."""
    for info in Remote(url, key).call("GET", "/v1/policies")["policies"]:
        algorithm = info["definition"]["algorithm"]
        click.echo(f"{info['name']:24} {algorithm:16} {info['items']:8,} items   version {info['version']}")


@policy.command()
@click.argument("name")
@click.option("--arms", is_flag=True, help="What has been learned about each arm, instead.")
@click.option("--segment", default="all", show_default=True, help="With --arms: whose.")
@on_server
def show(name: str, arms: bool, segment: str, url: str, key: str | None) -> None:
    """Show a policy: definition, version, items, graph."""
    remote = Remote(url, key)
    if not arms:
        show_json(remote.call("GET", path(name)))
        return
    total, seen = 1, 0
    while seen < total:
        page = remote.call("GET", path(name, "arms"), params={"segment": segment, "limit": 1000, "offset": seen})
        total, seen = page["total"], seen + len(page["arms"])
        for arm in page["arms"]:
            numbers = "  ".join(f"{field} {_number(arm[field])}" for field in ("mean", "width", "probability"))
            plays = f"plays {arm['plays']:g}  rewards {arm['rewards']:g}{'  paused' if arm['paused'] else ''}"
            click.echo(f"{arm['id']:24} {numbers}  {plays}")
        if not page["arms"]:
            break


def _number(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.4f}"


@policy.command()
@click.argument("name")
@click.argument("definition")
@on_server
def put(name: str, definition: str, url: str, key: str | None) -> None:
    """Make a policy, or replace its definition; what it has learned stays.

    DEFINITION is JSON, @FILE, or - for stdin.
    """
    body = Remote(url, key).call("PUT", path(name), content=read_definition(definition), headers={"Content-Type": JSON})
    report(body, f"policy {name} is set")


@policy.command()
@click.argument("name")
@click.argument("changes")
@on_server
def patch(name: str, changes: str, url: str, key: str | None) -> None:
    """Change parts of a policy's definition. CHANGES is JSON, @FILE, or - for stdin."""
    body = Remote(url, key).call("PATCH", path(name), content=read_definition(changes), headers={"Content-Type": JSON})
    report(body, f"policy {name} is changed")


@policy.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_server
def delete(name: str, yes: bool, url: str, key: str | None) -> None:
    """Delete a policy and all it has learned."""
    if not yes:
        click.confirm(f"Delete policy {name} and all it has learned?", abort=True, err=True)
    report(Remote(url, key).call("DELETE", path(name)), f"policy {name} is deleted")


@policy.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--keeps-clusters", is_flag=True, help="Same cluster numbering: keep what has been learned.")
@on_server
def graph(name: str, file: Path | None, keeps_clusters: bool, url: str, key: str | None) -> None:
    """Upload a graph (npz) to a diag-linucb policy; without FILE, show the one in use."""
    remote = Remote(url, key)
    if file is None:
        show_json(remote.call("GET", path(name, "graph")))
        return
    try:
        data = file.read_bytes()
    except OSError as error:
        raise Failed(error) from None
    params = {"keeps_clusters": str(keeps_clusters).lower()}
    body = remote.call(
        "PUT", path(name, "graph"), content=data, params=params, headers={"Content-Type": "application/octet-stream"}
    )
    report(body, f"policy {name} has graph {body['graph']}")
