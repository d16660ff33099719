"""`python -m loadtest users | openloop`: load for a running croupier server, and what it found."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from bandits import worlds as delays
from loadtest import openloop as driver
from loadtest.client import Unreachable
from loadtest.simulate import simulate
from loadtest.users import Habits, SetupRefused
from loadtest.worlds import Taste, World, films, headlines


def loop_run(main: Any) -> Any:
    """asyncio.run on uvloop, which costs half as much."""
    import uvloop

    return uvloop.run(main)


def key_header(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


DELAYS: dict[str, Callable[[float], delays.Delay]] = {
    "fixed": lambda ms: delays.fixed(round(ms)),
    "geometric": delays.geometric,
    "heavy-tailed": delays.heavy_tailed,
}

url_option = click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server listens.")
key_option = click.option("--key", envvar="CROUPIER_KEY", help="API key, sent as a bearer token [env: CROUPIER_KEY].")
json_option = click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the report there.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Load for a running croupier server.

    `users` learns whether the server learns: simulated people who click by known chances. `openloop` learns how long
    answers take under a given rate.
    """


@main.command()
@url_option
@key_option
@click.option("--path", default="/v1/recommend", show_default=True, help="What to POST to.")
@click.option(
    "--body",
    "body_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with one JSON request body, or one on each line (they take turns).",
)
@click.option("--rate", required=True, type=click.FloatRange(min=0, min_open=True), help="Requests a second.")
@click.option("--connections", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--arrivals", default="poisson", show_default=True, type=click.Choice(["poisson", "constant"]))
@click.option("--seed", default=0, show_default=True, help="The arrival times are drawn from it.")
@json_option
def openloop(
    url: str,
    key: str | None,
    path: str,
    body_file: Path,
    rate: float,
    connections: int,
    seconds: float,
    arrivals: driver.Arrivals,
    seed: int,
    json_file: Path | None,
) -> None:
    """Latency at a fixed rate, counted from the time each request was due.

    Requests leave on schedule whether or not earlier ones were answered; waiting for a free connection is part of the
    latency. Exit status 1 when a request got no 2xx answer.

    Example: python -m loadtest openloop --rate 2000 --connections 32 --seconds 20 --body ask.json
    """
    try:
        request = driver.cycle(url, path, driver.bodies_of(body_file.read_bytes()), key_header(key))
        result = loop_run(
            driver.drive(
                url,
                request,
                rate=rate,
                seconds=seconds,
                connections=connections,
                arrivals=arrivals,
                seed=seed,
                progress=lambda r, s: click.echo(
                    f"  {s:5.1f} s  answered {r.answered:,}  p50 {r.quantile_ms(50):.2f} ms  "
                    f"p99 {r.quantile_ms(99):.2f} ms  errors {r.errors:,}",
                    err=True,
                ),
            )
        )
    except (Unreachable, ValueError) as e:
        raise click.ClickException(str(e)) from None
    click.echo(result.text())
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    if result.errors:
        sys.exit(1)


@main.command()
@url_option
@key_option
@click.option(
    "--world",
    "worlds",
    multiple=True,
    default=("headlines",),
    show_default=True,
    type=click.Choice(["headlines", "films"]),
    help="headlines: arms by segment (banker). films: embeddings (Diag-LinUCB). May be given twice.",
)
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--users", default=16, show_default=True, type=click.IntRange(min=1), help="At the same time, per world.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Visits a second per world [as fast as can].")
@click.option("--window", "window_s", default=10.0, show_default=True, help="The policies' reward window, seconds.")
@click.option("--delay", "delay_s", default=1.0, show_default=True, help="Seconds from choice to report, see the law.")
@click.option(
    "--delay-law",
    default="geometric",
    show_default=True,
    type=click.Choice(list(DELAYS)),
    help="fixed: always --delay. geometric: memoryless with that mean. heavy-tailed: Pareto with that median.",
)
@click.option("--duplicates", default=0.02, show_default=True, help="Share of rewards reported twice.")
@click.option("--late", default=0.01, show_default=True, help="Share of rewards reported after the window.")
@click.option(
    "--never", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="Share of clicks never reported."
)
@click.option("--answer-zeros/--clicks-only", default=False, show_default=True, help="Report what was not clicked too.")
@click.option("--batch", default=1, show_default=True, help="Most rewards in one feedback request.")
@click.option("--drain", "drain_s", type=float, help="Longest wait for late rewards at the end [window + 5 s].")
@click.option("--probe/--no-probe", default=True, show_default=True, help="Measure freshness with a probe policy.")
@click.option("--set-up/--no-set-up", "create", default=True, show_default=True, help="Create the policies first.")
@click.option(
    "--patience", "patience_s", default=30.0, show_default=True, help="How long to retry while it is away, s."
)
@click.option("--seed", default=0, show_default=True)
@json_option
def users(
    url: str,
    key: str | None,
    worlds: tuple[str, ...],
    seconds: float,
    users: int,
    rate: float | None,
    window_s: float,
    delay_s: float,
    delay_law: str,
    duplicates: float,
    late: float,
    never: float,
    answer_zeros: bool,
    batch: int,
    drain_s: float | None,
    probe: bool,
    create: bool,
    patience_s: float,
    seed: int,
    json_file: Path | None,
) -> None:
    """Simulated people who click by known chances; does the server learn, and do its books agree with theirs?

    Reports the click rate against a random and the best possible choice, how soon an acknowledged reward shows, and
    every outcome counted on both sides. The comparison assumes that nobody else sends rewards meanwhile. A restart of
    the server is survived: requests are sent again and counted. Exit status 1 when the books differ.

    Example: python -m loadtest users --world headlines --world films --seconds 60 --rate 300
    """
    try:
        habits = Habits(
            users=users,
            visits_per_s=rate,
            delay=delays.never(never, DELAYS[delay_law](1000 * delay_s)),
            duplicate_share=duplicates,
            late_share=late,
            answer_zeros=answer_zeros,
            batch=batch,
            patience_s=patience_s,
        )
        drain_s = window_s + 5 if drain_s is None else drain_s
        chosen = [make_world(name, window_s, seed) for name in dict.fromkeys(worlds)]
        report = loop_run(simulate(url, chosen, habits, seconds, drain_s, probe, create, seed, key_header(key)))
    except (Unreachable, SetupRefused, ValueError) as e:
        raise click.ClickException(str(e)) from None
    click.echo(report.text(), nl=False)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    if report.books and not report.balanced:
        sys.exit(1)


def make_world(name: str, window_s: float, seed: int) -> World:
    if name == "films":
        return films(Taste.draw(np.random.default_rng(seed)), window_s=window_s)
    return headlines(window_s=window_s)


if __name__ == "__main__":
    main(prog_name="python -m loadtest")
