"""What recommending over HTTP costs: `python -m benchmarks.http [--quick] [--unpinned] [PART ...]`.

    recommend     ten items out of the 1,000 or 5,000 edges of ten clusters, closed loop of 32 connections: by the hot
                  path, by a FastAPI route with pydantic models that does all the same, and by the ordinary route of a
                  server without the hot path, beside a raw ASGI app that returns a constant of the same size;
                  for comparison also with embeddings (200 clusters, 2,000 items) and from a bank of eight arms
    open          the same by the hot path and by the constant app in an open loop of 64 connections, each at half and
                  at 80 % of its own closed loop's rate: Poisson arrivals, latency from the scheduled time
    other_routes  worker CPU of GET /healthz and GET /v1/policies, with the hot path's protocol over without it
    two_workers   worker CPU of a recommendation by a server of two workers over that by a server of one; the same while
                  agent and learner, which share a core with a second worker, are stopped; and the constant app's
    sizes         worker CPU of a recommendation out of 1,000 edges, with ten million in total over ten thousand

Policy and requests: benchmarks.baselines; thousands of requests take turns, no two alike. Runs are brief and in turns,
medians and quartiles are given, ratios are of one round (benchmarks.measuring). Unless --unpinned, the worker (or the
constant app) has core 0 for itself, and core 1 is the load generator's, the agent's and the learner's: one worker on
two cores. There the generator goes before the two where it may (as root: `generator_first`), since clients are on other
machines. `two_workers` is never pinned. CPU for each answer is what the process used, so it depends least on who else
is at work; `others_cores` says how many cores others had meanwhile, and a rate holds only where that is near zero.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from benchmarks import pydantic_route
from benchmarks.baselines import Constant, PydanticServer, Slates, answer_size, posts
from benchmarks.measuring import QUANTILES, Measured, Runs, Subject, closed, described, latencies, opened, ratio, rounds
from benchmarks.processes import generating, parts, pin, stopped
from loadtest.client import Address
from loadtest.fast import Load, Outcome, Requests
from loadtest.users import set_up
from loadtest.worlds import Taste, films, headlines
from server.launch import ServerProcess

WIDTHS = (100, 500)
CONNECTIONS, CONNECTIONS_OPEN = 32, 64
SHARES = (0.5, 0.8)
PARTS = ("recommend", "other_routes", "two_workers", "sizes")
CLUSTERS = (100, 100_000)  # of a hundred items each: ten thousand edges in total, and ten million
PATH = "/v1/recommend"


Processes = dict[str, list[int]]


class Plan:
    """How long to measure."""

    def __init__(self, quick: bool, pinned: bool) -> None:
        self.pinned = pinned
        self.rounds, self.seconds = (5, 0.3) if quick else (15, 0.5)
        self.open_rounds, self.open_seconds = (3, 1.0) if quick else (7, 3.0)

    @property
    def core(self) -> int | None:
        return 1 if self.pinned else None

    def place(self, processes: Processes) -> None:
        """Workers on core 0, everything else beside the generator on core 1."""
        for part, pids in processes.items() if self.pinned else ():
            pin(pids, 0 if part == "worker" else 1)


def edges(slates: Slates) -> str:
    return f"{slates.edges:,} edges"


async def _others(server: ServerProcess, processes: Processes) -> list[Subject]:
    """Requests of other kinds: an embedding, whose clusters are to be found, and a segment of a K-armed policy."""
    taste = Taste.draw(np.random.default_rng(0), items=2000, groups=200, dim=32)
    made = []
    for name, world in (
        ("1,000 edges, embedding", films(taste, k=10, width=100, window_s=1800, clusters_per_user=10)),
        ("a bank of 8 arms", headlines(window_s=1800)),
    ):
        await set_up(server.url, world)
        head = b'{"policy":%b,"k":%d,"user":' % (msgspec.json.encode(world.policy), world.k)
        bodies = [b"%b%b}" % (head, user) for user in world.users]
        made.append(Subject(name, server.url, posts(server.url, PATH, bodies), processes))
    return made


async def recommend(plan: Plan) -> dict[str, Any]:
    """Closed and open loops: {"recommend": ..., "open": ...}."""
    worlds = [Slates(width) for width in WIDTHS]
    with ServerProcess() as ours, PydanticServer() as plain:
        for server in (ours, plain):
            await server.ready()
        for slates in worlds:
            await slates.put(ours.url, plain.url)
        bodies = {slates: slates.bodies() for slates in worlds}
        size = await answer_size(ours.url, PATH, bodies[worlds[0]])
        async with Constant.running(size) as constant:
            processes = {"ours": parts(ours.pids()), "plain": parts(plain.pids()), "base": {"worker": constant.pids}}
            for each in processes.values():
                plan.place(each)
            base = Subject("constant", constant.url, posts(constant.url, "/", bodies[worlds[0]]), processes["base"])
            fast, slow = [], []
            for slates in worlds:
                name, of = edges(slates), bodies[slates]
                fast.append(Subject(name, ours.url, posts(ours.url, PATH, of), processes["ours"]))
                for kind, path in (("pydantic", pydantic_route.PATH), ("ordinary", PATH)):
                    slow.append(Subject(f"{name}, {kind}", plain.url, posts(plain.url, path, of), processes["plain"]))
            slow += await _others(ours, processes["ours"])
            with generating(plan.core) as first:
                runs = closed([base, *fast, *slow], plan.rounds, plan.seconds, CONNECTIONS)
                return {
                    "answer_bytes": size,
                    "generator_first": first,
                    "recommend": {name: of_closed(name, runs) for name in runs},
                    "open": {str(share): _open(plan, [base, *fast], runs, share) for share in SHARES},
                }


def of_closed(name: str, runs: Runs) -> dict[str, Any]:
    """A subject's figures, over the constant app's and over those of the pydantic route."""
    own, base = runs[name], runs["constant"]
    found = described(own) | {
        "rate_of_constant": ratio(own, base, lambda run: run.rate),
        "constant_cpu_of_this": ratio(base, own, lambda run: run.worker_us),
    }
    if rival := runs.get(f"{name}, pydantic"):
        found["times_pydantic"] = ratio(own, rival, lambda run: run.rate)
        found["pydantic_cpu_of_this"] = ratio(rival, own, lambda run: run.worker_us)
    return found


def _open(plan: Plan, subjects: list[Subject], saturated: Runs, share: float) -> dict[str, Any]:
    rates = {s.name: share * described(saturated[s.name])["answers_per_s"]["median"] for s in subjects}
    runs = opened(subjects, rates, plan.open_rounds, plan.open_seconds, CONNECTIONS_OPEN)

    def over(name: str, percent: float) -> dict[str, float]:
        def latency(run: Measured) -> float:
            return run.outcome.latency_us(percent)

        return ratio(runs[name], runs["constant"], latency)

    return {
        name: {"rate": rates[name]}
        | described(own)
        | latencies(own)
        | {"p50_of_constant": over(name, 50), "p99_of_constant": over(name, 99)}
        for name, own in runs.items()
    }


async def other_routes(plan: Plan) -> dict[str, Any]:
    """Worker CPU of routes that are not hot, with the hot path's protocol and without."""
    with ServerProcess() as hot, ServerProcess(["--no-hot-path"]) as plain:
        subjects = []
        for kind, server in (("hot", hot), ("plain", plain)):
            await server.ready()
            await set_up(server.url, headlines(window_s=1800))
            processes = parts(server.pids())
            plan.place(processes)
            for path in ("/healthz", "/v1/policies"):
                get = Requests.of([Address.of(server.url).request("GET", path)])
                subjects.append(Subject(f"{path} {kind}", server.url, get, processes))
        subjects.sort(key=lambda subject: subject.name)  # what is compared comes one after the other
        with generating(plan.core):
            runs = closed(subjects, plan.rounds, 2 * plan.seconds, CONNECTIONS)
    return {
        path: {
            "cpu_of_no_hot_path": ratio(runs[f"{path} hot"], runs[f"{path} plain"], lambda run: run.worker_us),
            "hot": described(runs[f"{path} hot"]),
            "plain": described(runs[f"{path} plain"]),
        }
        for path in ("/healthz", "/v1/policies")
    }


async def two_workers(plan: Plan) -> dict[str, Any]:
    """Worker CPU of a recommendation, two workers and one; and of the constant app's answer, which says what two
    processes cost each other that share nothing but the machine."""
    slates = Slates(WIDTHS[0])
    async with contextlib.AsyncExitStack() as stack:
        one, two = (stack.enter_context(ServerProcess(["--workers", str(n)])) for n in (1, 2))
        for server in (one, two):
            await server.ready()
            await slates.put(server.url)
        bodies = slates.bodies()
        size = await answer_size(one.url, PATH, bodies)
        subjects = [
            Subject(name, server.url, posts(server.url, PATH, bodies), parts(server.pids()))
            for name, server in (("one", one), ("two", two))
        ]
        for name, n in (("constant, one", 1), ("constant, two", 2)):
            app = await stack.enter_async_context(Constant.running(size, n))
            subjects.append(Subject(name, app.url, posts(app.url, "/", bodies), {"worker": app.pids}))
        runs = closed(subjects, plan.rounds, 2 * plan.seconds, CONNECTIONS_OPEN)

        def alone(subject: Subject, load: Load, r: int) -> Outcome:
            del r
            with stopped([*subject.processes["agent"], *subject.processes["learner"]]):
                return load.closed(subject.requests, seconds=plan.seconds)

        still = rounds(subjects[:2], plan.rounds, CONNECTIONS_OPEN, alone)
    return {
        "cpu_of_one": ratio(runs["two"], runs["one"], lambda run: run.worker_us),
        "cpu_of_one_alone": ratio(still["two"], still["one"], lambda run: run.worker_us),
        "constant_cpu_of_one": ratio(runs["constant, two"], runs["constant, one"], lambda run: run.worker_us),
        **{name: described(found) for name, found in runs.items()},
    }


async def sizes(plan: Plan) -> dict[str, Any]:
    """Worker CPU of a recommendation out of 1,000 edges, where there are ten million in total and ten thousand."""
    with ServerProcess(["--max-body-bytes", str(1 << 30)]) as server:
        await server.ready()
        processes = parts(server.pids())
        subjects = []
        for clusters in CLUSTERS:
            slates = Slates(WIDTHS[0], clusters)
            await slates.put(server.url)
            requests = posts(server.url, PATH, slates.bodies())
            subjects.append(Subject(f"{clusters * WIDTHS[0]:,} edges in total", server.url, requests, processes))
        plan.place(processes)
        with generating(plan.core):
            runs = closed(subjects, plan.rounds, 2 * plan.seconds, CONNECTIONS)
    few, many = runs.values()
    return {"cpu_of_few": ratio(many, few, lambda run: run.worker_us)} | {name: described(runs[name]) for name in runs}


async def _run(plan: Plan, only: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "recommend" in only:
        found |= await recommend(plan)
    if "other_routes" in only:
        found["other_routes"] = await other_routes(plan)
    if "two_workers" in only:
        found["two_workers"] = await two_workers(plan)
    if "sizes" in only:
        found["sizes"] = await sizes(plan)
    return found | {"pinned": plan.pinned, "errors": _errors(found), "plots": list(_plots(found))}


def _plots(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """For the report's picture, see benchmarks/plots.py."""
    if "recommend" in found:
        dots = {name: _spread(row["rate_of_constant"]) for name, row in found["recommend"].items()}
        title = "Recommend over HTTP, one worker: of a constant ASGI app's rate"
        yield {"title": title, "dots": {"times the constant's rate": dots}, "log": "x", "limit": 1.0}
    for share, rows in found.get("open", {}).items():
        lines = {name: {f"p{q:g}": row[f"p{q:g}_us"]["median"] for q in QUANTILES} for name, row in rows.items()}
        title = f"Latency from the scheduled time, open loop at {float(share):.0%} of its own saturation"
        yield {"title": title, "distributions": lines, "y": "µs", "log": "y"}


def _spread(value: Mapping[str, float]) -> list[float]:
    return [value["median"], value["low"], value["high"]]


def _errors(found: Any) -> int:
    """All that is called errors, wherever it stands."""
    if not isinstance(found, dict):
        return 0
    return sum(value if key == "errors" else _errors(value) for key, value in found.items())


def run(quick: bool = False, pinned: bool = True, only: Sequence[str] = PARTS) -> dict[str, Any]:
    """All parts, or only these of PARTS; the open loops belong to recommend."""
    import uvloop

    return uvloop.run(_run(Plan(quick, pinned), only))


def _shown(value: Mapping[str, float], form: str = ".2f") -> str:
    return f"{value['median']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def _closed_lines(name: str, row: dict[str, Any]) -> Iterator[str]:
    cores = {part: row[f"{part}_cores"]["median"] for part in ("worker", "generator", "others")}
    cpu = {part: row[f"{part}_cpu_us"]["median"] for part in ("agent", "learner")}
    yield (
        f"  {name:<22} {_shown(row['answers_per_s'], ',.0f')}/s; CPU us: worker {_shown(row['worker_cpu_us'], '.1f')}, "
        f"agent {cpu['agent']:.1f}, learner {cpu['learner']:.1f}"
    )
    yield (
        f"      of the constant's rate {_shown(row['rate_of_constant'])}, by CPU {_shown(row['constant_cpu_of_this'])};"
        f" cores: worker {cores['worker']:.2f}, generator {cores['generator']:.2f}, others {cores['others']:.2f};"
        f" errors {row['errors']}"
    )
    if "times_pydantic" in row:
        times, cpu_times = row["times_pydantic"], row["pydantic_cpu_of_this"]
        yield f"      times the pydantic route's rate {_shown(times)}, by CPU {_shown(cpu_times)}"


def _open_lines(name: str, row: dict[str, Any]) -> Iterator[str]:
    late = [row[f"generator_late_p{q}_us"]["median"] for q in (50, 99)]
    yield (
        f"  {name:<22} {row['rate']:,.0f}/s: p50 {_shown(row['p50_us'], ',.0f')}, p99 {_shown(row['p99_us'], ',.0f')},"
        f" p99.9 {row['p99.9_us']['median']:,.0f}"
    )
    yield (
        f"      of the constant's p50 {_shown(row['p50_of_constant'])}, p99 {_shown(row['p99_of_constant'])}; generator"
        f" late p50 {late[0]:,.0f}, p99 {late[1]:,.0f}; others {row['others_cores']['median']:.2f} cores;"
        f" errors {row['errors']}"
    )


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The figures for people: median (quartiles)."""
    if "recommend" in found:
        how = "pinned" if found["pinned"] else "not pinned"
        how += ", the generator before all others" if found["generator_first"] else ""
        yield f"closed loop of {CONNECTIONS} connections, answers of {found['answer_bytes']} bytes; {how}"
        for name, row in found["recommend"].items():
            yield from _closed_lines(name, row)
    for share, rows in found.get("open", {}).items():
        yield f"open loop of {CONNECTIONS_OPEN} connections at {share} of its own rate, us from the scheduled time"
        for name, row in rows.items():
            yield from _open_lines(name, row)
    for path, row in found.get("other_routes", {}).items():
        hot, plain = (_shown(row[kind]["worker_cpu_us"], ".1f") for kind in ("hot", "plain"))
        yield f"worker CPU of GET {path} {hot} us, without the hot path {plain}"
        yield f"      times {_shown(row['cpu_of_no_hot_path'], '.3f')}"
    if row := found.get("two_workers"):
        one, two = (_shown(row[name]["worker_cpu_us"], ".1f") for name in ("one", "two"))
        yield f"worker CPU of a recommendation by two workers {two} us, by one {one}: times {_shown(row['cpu_of_one'])}"
        yield f"      while agent and learner are stopped: times {_shown(row['cpu_of_one_alone'])}"
        yield f"      of the constant app's answer: times {_shown(row['constant_cpu_of_one'])}"
    if row := found.get("sizes"):
        yield f"worker CPU where there are ten million edges, times where there are 10,000: {_shown(row['cpu_of_few'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="PART", help=f"which; all unless given: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--unpinned", action="store_true", help="leave it to the kernel which core does what")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found = run(arguments.quick, not arguments.unpinned, arguments.only or PARTS)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(*lines(found), sep="\n")


if __name__ == "__main__":
    main()
