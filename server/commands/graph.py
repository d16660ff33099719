"""`croupier graph ...`."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from server.cli import Failed
from server.commands.progress import Progress

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def graph() -> None:
    """Build the graph that a diag-linucb policy needs: which items can be shown to which clusters of users.

    \b
    Example
      croupier graph build --ratings ratings.csv -o films.npz
    """


@graph.command()
@click.option("--ratings", type=FILE, help="Ratings: CSV with the columns userId, movieId, rating (as MovieLens).")
@click.option("--users", type=FILE, help="Instead of ratings: embeddings of users, .npy, one row each.")
@click.option("--items", type=FILE, help="With --users: embeddings of items, .npy, in the same space.")
@click.option("--ids", type=FILE, help="With --items: their ids, a text file with one a line.")
@click.option("-o", "--output", type=FILE, default=Path("graph.npz"), show_default=True, help="Where the graph goes.")
@click.option(
    "--save-users", type=FILE, help="With --ratings: write the users' embeddings, .json or .npz, to ask with."
)
@click.option("--clusters", type=int, default=64, show_default=True, help="Clusters of users.")
@click.option("--items-per-cluster", type=int, default=100, show_default=True, help="Items a cluster can be shown.")
@click.option("--dim", type=int, default=16, show_default=True, help="With --ratings: length of an embedding.")
@click.option("--min-ratings", type=int, default=5, show_default=True, help="With --ratings: leave rarer items out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same graph.")
def build(
    ratings: Path | None,
    users: Path | None,
    items: Path | None,
    ids: Path | None,
    output: Path,
    save_users: Path | None,
    clusters: int,
    items_per_cluster: int,
    dim: int,
    min_ratings: int,
    seed: int,
) -> None:
    """Build a graph from ratings, or from embeddings you have.

    \b
    Examples
      croupier graph build --ratings ratings.csv -o films.npz --save-users users.json
      croupier graph build --users users.npy --items items.npy --ids ids.txt -o films.npz
      croupier policy graph films films.npz           gives it to a running server
    """
    if (ratings is None) == (users is None):
        raise click.UsageError("give --ratings FILE, or --users, --items and --ids.")
    if users is not None and (items is None or ids is None):
        raise click.UsageError("--users goes with --items and --ids.")
    if save_users is not None and ratings is None:
        raise click.UsageError("--save-users goes with --ratings.")
    from bandits import graph_builder
    from bandits.graph import GraphError

    try:
        with Progress() as progress:
            if ratings is not None:
                built = graph_builder.from_ratings(
                    ratings, clusters, items_per_cluster, dim, min_ratings, seed, progress
                )
                result = built.graph
                if save_users is not None:
                    write_users(save_users, built.user_ids, built.users)
            else:
                assert users is not None
                assert items is not None
                assert ids is not None
                result = graph_builder.from_embeddings(
                    read_npy(users), read_npy(items), ids.read_text(encoding="utf-8").splitlines(), clusters,
                    items_per_cluster, seed, progress,
                )  # fmt: skip
        output.write_bytes(result.to_bytes())
    except (OSError, graph_builder.BuildError, GraphError, UnicodeDecodeError) as error:
        raise Failed(error) from None
    click.echo(
        f"{output}: {result.n_clusters:,} clusters, {len(result.ids):,} items, {len(result.items):,} edges, "
        f"embeddings of {result.centroids.shape[1]} numbers, version {result.version}"
    )
    if save_users is not None:
        click.echo(f"{save_users}: embeddings of {len(built.user_ids):,} users")


def read_npy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Failed(f"{path}: is not a .npy file of numbers ({error}); write it with numpy.save.") from None


def write_users(path: Path, ids: tuple[str, ...], embeddings: Any) -> None:
    if path.suffix == ".json":
        rows = {user: [round(x, 6) for x in row] for user, row in zip(ids, embeddings.tolist(), strict=True)}
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        with path.open("wb") as file:
            np.savez(file, ids=np.array(ids), embeddings=embeddings)
