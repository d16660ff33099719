"""Diag-LinUCB on a sparse cluster-item graph: hyper-parameters, serving, and the whole policy for a notebook.

Source: Yi et al., "Online Matching: A Real-time Bandit System for Large-scale Recommendations", RecSys 2023,
arXiv:2307.15893; symbols follow the paper. The user is a context (clusters c, weights w_c); the edge (c, j) to item j
holds b (sum of w * reward, reward units) and d (sum of w^2, no unit).

    mean_j  = sum_c w_c b_cj / (d_cj + prior)
    width_j = sqrt(sum_c w_c^2 / (d_cj + prior))
    UCB_j   = mean_j + alpha * width_j

The mean is a score and not a click rate: each edge explains the whole reward, so means of items seen through many
clusters are larger. Under a half-life every addition is multiplied by g(t) = 2^((t - origin) / half_life) at its
decision's time t, and now: mean_j = sum_c w_c b / (d + prior g), width_j^2 = sum_c w_c^2 g / (d + prior g).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandits import kernels
from bandits.choosing import CANDIDATE, CLUSTERS_MAX, EXCLUDED, EXPLOIT, EXPLORE, PLACES, THOMPSON, limit
from bandits.choosing import choose as choose_kernel
from bandits.graph import Graph, by_item
from bandits.nearest import LANES, nearest
from bandits.reaching import BLOCK, MOST, span_of

MODES = {"explore": EXPLORE, "exploit": EXPLOIT, "thompson": THOMPSON}
REBASE_HALF_LIVES = 30  # forward decay moves its origin before g reaches 2^30
_SHORTLIST_MARGIN = 8
_NO_ITEMS = np.empty(0, np.int64)


class DiagError(ValueError):
    """A hyper-parameter or an input that cannot be used: `field` names it, the sentence says what is allowed."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class DiagParameters:
    """Hyper-parameters of Diag-LinUCB; the defaults are the ones docs/algorithms.md measures.

    Args:
        clusters_per_user: K, how many nearest centroids make a context when the caller sends an embedding.
        temperature: of the softmax over similarities, in their unit (graphs built from ratings have similarities that
            spread by 1); small means the nearest cluster alone.
        alpha: how many widths are added to the mean (explore) or span one standard deviation (thompson); >= 0.
        prior: ridge added to every d; > 0.
        mode: explore (mean + alpha width), exploit (mean), thompson (normal with that mean and alpha width).
        explore_share: share of decisions that follow `mode`; the others exploit; in [0, 1].
        randomize_top: above 1, the slate is drawn without replacement from this many best items (at least k).
        fresh: "first" puts items without a play on any edge of the context ahead; "prior" scores them by the prior.
        fresh_share: with "first", at most ceil(fresh_share * slate) of them go ahead; in [0, 1].
        half_life_s: seconds of log time after which a reward counts half; None keeps everything.

    Raises:
        DiagError: naming the field.

    >>> DiagParameters(alpha=-1.0)
    Traceback (most recent call last):
    bandits.diag_linucb.DiagError: alpha: must be a finite number of at least 0, not -1.0
    """

    clusters_per_user: int = 10
    temperature: float = 0.007
    alpha: float = 0.3
    prior: float = 0.1
    mode: str = "explore"
    explore_share: float = 1.0
    randomize_top: int = 1
    fresh: str = "prior"
    fresh_share: float = 0.5
    half_life_s: float | None = None

    def __post_init__(self) -> None:
        def need(good: bool, field: str, allowed: str) -> None:
            if not good:
                raise DiagError(field, f"must be {allowed}, not {getattr(self, field)!r}")

        most = 1e9  # keeps every product of hyper-parameters finite
        need(1 <= self.clusters_per_user <= 64, "clusters_per_user", "a whole number from 1 to 64")
        need(1e-9 <= self.temperature <= most, "temperature", "a number from 1e-9 to 1e9")
        need(0.0 <= self.alpha <= most, "alpha", "a finite number of at least 0")
        need(1e-9 <= self.prior <= most, "prior", "a number from 1e-9 to 1e9")
        need(self.mode in MODES, "mode", "explore, exploit or thompson")
        need(0.0 <= self.explore_share <= 1.0, "explore_share", "a number from 0 to 1")
        need(1 <= self.randomize_top <= 10_000, "randomize_top", "a whole number from 1 (off) to 10000")
        need(self.fresh in ("first", "prior"), "fresh", "first or prior")
        need(0.0 <= self.fresh_share <= 1.0, "fresh_share", "a number from 0 to 1")
        need(self.half_life_s is None or 1.0 <= self.half_life_s <= 1e12, "half_life_s", "seconds from 1, or null")

    @property
    def half_life_ms(self) -> float:
        """0 stands for no half-life in the kernels."""
        return 0.0 if self.half_life_s is None else self.half_life_s * 1000.0

    def growth(self, time_ms: int, origin_ms: int) -> float:
        """g(t) = 2^((t - origin) / half_life), 1 without a half-life.

        >>> DiagParameters(half_life_s=10.0).growth(25_000, origin_ms=5_000)
        4.0
        """
        out = np.empty(1)
        kernels.growth(np.array([time_ms], np.int64), origin_ms, self.half_life_ms, out)
        return float(out[0])

    def next_origin(self, time_ms: int, origin_ms: int) -> tuple[int, float]:
        """(origin, factor): where forward decay counts from once it has seen `time_ms`, and what multiplies b and d.

        The origin moves by whole multiples of 30 half-lives, so the factor is a power of two and loses no bit.
        Without need: (origin_ms, 1.0).
        """
        span = self.half_life_ms * REBASE_HALF_LIVES
        steps = int((time_ms - origin_ms) / span) if span > 0.0 else 0
        if steps < 1:
            return origin_ms, 1.0
        return origin_ms + round(steps * span), 2.0 ** max(-REBASE_HALF_LIVES * steps, -1074)


class Context(NamedTuple):
    """A user: clusters u32[K], nearest first, and weights u16[K], w = weights / 65535."""

    clusters: NDArray[np.uint32]
    weights: NDArray[np.uint16]


class Slate(NamedTuple):
    """What is shown: item indices u32[k'], scores f64[k'], propensities f64[k'] (NaN: none exact), mode code used."""

    items: NDArray[np.uint32]
    scores: NDArray[np.float64]
    propensities: NDArray[np.float64]
    mode: int


class Serving:
    """The serving arrays of one policy with their scratch: what a server asks on every request.

    Args:
        indptr: i64[C+1], items u32[E] (item index), pairs f32[E, 2]: cluster order, see bandits/kernels.py. They are
            kept, not copied, so another process may refresh `pairs` in shared memory at any time; 8-byte aligned.
        n_items: N. centroids: f32[C, dim]. paused: u8[N], kept too; not 0 means never shown.
    One instance serves one thread: the scratch is reused by every call.
    """

    def __init__(
        self,
        indptr: NDArray[np.int64],
        items: NDArray[np.uint32],
        pairs: NDArray[np.float32],
        n_items: int,
        parameters: DiagParameters,
        centroids: NDArray[np.float32] | None = None,
        paused: NDArray[np.uint8] | None = None,
    ) -> None:
        self.parameters = parameters
        self.n_items = n_items
        self.n_clusters = len(indptr) - 1
        self.centroids = np.empty((self.n_clusters, 0), np.float32) if centroids is None else centroids
        paused = np.zeros(n_items, np.uint8) if paused is None else paused
        self.index = np.empty(n_items, np.uint32)
        self.numbers = np.empty((2, n_items))
        rows = -(-n_items // BLOCK) * BLOCK  # the kernel takes items by whole blocks
        p = parameters
        settings = (p.alpha, p.explore_share, p.randomize_top, p.fresh == "first", p.fresh_share, MODES[p.mode])
        arrays: Any = (
            *(indptr, items, pairs, paused),
            *(_blank_sums(span_of(n_items)), np.zeros(n_items, np.uint8), np.zeros(n_items, np.uint8)),
            *(np.empty(2 * rows + 1, np.uint32), np.empty((2, rows)), np.empty(n_items)),
            *(np.empty((3, n_items), np.int64), self.index, self.numbers),
            *(np.array(settings, np.float64), np.empty(2 * MOST), np.empty((2, CLUSTERS_MAX), np.int64)),
        )
        self._arrays = arrays  # the kernel holds addresses only
        kinds = ["i8", "u4", "f4", "u1", "f4", "u1", "u1", "u4", "f8", "f8", "i8", "u4", "f8", "f8", "f8", "i8"]
        for array, kind in zip(arrays, kinds, strict=True):
            assert array.dtype == np.dtype(kind)
            assert array.flags.c_contiguous
            assert array.ctypes.data % array.dtype.itemsize == 0
        assert len(items) == len(pairs) == int(indptr[-1])
        assert pairs.ctypes.data % 8 == 0, "a pair is written by one 8-byte store"
        assert len(paused) == n_items
        addresses = [array.ctypes.data for array in arrays]
        sizes = self.n_clusters, n_items
        self._place = np.array([*addresses[:4], *sizes, *addresses[4:-1], span_of(n_items), addresses[-1]], np.int64)
        assert len(self._place) == PLACES
        shortlist = min(p.clusters_per_user + _SHORTLIST_MARGIN, self.n_clusters)
        self._products = np.empty(self.n_clusters + LANES, np.float32)
        self._shortlist = np.empty(shortlist, np.int64), np.empty(shortlist)

    def nearest(self, embedding: ArrayLike) -> Context:
        """The context of a user embedding f32[dim]: its K nearest centroids by inner product and their weights.

        Raises:
            DiagError: field `embedding`: another length than the centroids', or numbers not finite or too large.
        """
        vector = np.ascontiguousarray(embedding, np.float32)
        if vector.shape != (self.centroids.shape[1],) or vector.size == 0:
            raise DiagError("embedding", f"must have {self.centroids.shape[1]} numbers, has shape {vector.shape}")
        k = min(self.parameters.clusters_per_user, self.n_clusters)
        context = Context(np.empty(k, np.uint32), np.empty(k, np.uint16))
        found = nearest(self.centroids, vector, self.parameters.temperature, self._products, *self._shortlist, *context)
        if found < k:
            raise DiagError("embedding", "must hold finite numbers of a usual size")
        return context

    def choose(
        self,
        clusters: NDArray[np.uint32],
        weights: NDArray[np.uint16],
        k: int,
        word: int,
        mode: int | None = None,
        exclude: NDArray[np.int64] = _NO_ITEMS,
        candidates: NDArray[np.int64] | None = None,
    ) -> Slate:
        """A slate of at most k items for one context; fewer where fewer have an edge to its clusters and may be shown.

        Args:
            word: 63 random bits, `int(rng.bit_generator.random_raw()) >> 1`; the slate is a function of it.
            mode: overrides the policy's: then no share of the decisions exploits instead.
            exclude, candidates: item indices i64[n]; without candidates every item is one. Numbers that are no
                item's are ignored.
        """
        got, used = self.fill(clusters, weights, k, word, mode, exclude, candidates)
        scores, propensities = self.numbers[:, :got].copy()
        return Slate(self.index[:got].copy(), scores, propensities, used)

    def fill(
        self,
        clusters: NDArray[np.uint32],
        weights: NDArray[np.uint16],
        k: int,
        word: int,
        mode: int | None = None,
        exclude: NDArray[np.int64] = _NO_ITEMS,
        candidates: NDArray[np.int64] | None = None,
    ) -> tuple[int, int]:
        """`choose` without the copy: (k', mode code used); the slate is index[:k'] and numbers[:, :k'] (scores and
        propensities) until the next call."""
        place, wanted = self._place, 0
        limited = candidates is not None or len(exclude) > 0
        if limited:
            limit(place, exclude, EXCLUDED)
        if candidates is not None:
            wanted = CANDIDATE
            limit(place, candidates, CANDIDATE)
        got, used = choose_kernel(place, clusters, weights, wanted, k, -1 if mode is None else mode, word)
        if limited:
            limit(place, exclude, 0)
        if candidates is not None:
            limit(place, candidates, 0)
        return got, used


def _blank_sums(n: int) -> NDArray[np.float32]:
    """The sums of bandits/reaching.py, rows (0, -0.0), on a cache line: the kernel looks at whole blocks."""
    flat = np.zeros(2 * n + 16, np.float32)
    shift = -flat.ctypes.data % 64 // 4
    sums = flat[shift : shift + 2 * n].reshape(n, 2)
    sums[:, 1] = -0.0
    return sums


class DiagLinUCB:
    """The whole policy in one object: a graph, its parameters, choosing and learning. No server needed.

    Args:
        graph: which items can be shown to which clusters.
        default: the reward an unanswered decision teaches at once; None: only answers teach.

    >>> graph = Graph(np.eye(2, dtype=np.float32), np.array([0, 2, 4]), np.array([0, 1, 0, 1], np.uint32), ("a", "b"))
    >>> policy = DiagLinUCB(graph, DiagParameters(clusters_per_user=1, alpha=0.0, prior=1.0))
    >>> user = policy.nearest([1.0, 0.0])
    >>> policy.decided(user, [1])                      # "b" was shown
    >>> policy.rewarded(user, 1, 1.0)                  # and clicked
    >>> slate = policy.choose(user, k=2, rng=np.random.default_rng(1))
    >>> [graph.ids[i] for i in slate.items], slate.scores.tolist()   # b / (d + prior) = 1 / (1 + 1)
    (['b', 'a'], [0.5, 0.0])
    """

    def __init__(
        self, graph: Graph, parameters: DiagParameters = DiagParameters(), default: float | None = 0.0, time_ms: int = 0
    ) -> None:
        self.graph, self.parameters, self.default = graph, parameters, default
        self.by_item = by_item(graph)
        self.edges = np.zeros((len(graph.items), 2))
        self.pairs = np.empty((len(graph.items), 2), np.float32)
        self.paused = np.zeros(len(graph.ids), np.uint8)
        self.origin_ms = self.time_ms = time_ms
        self._touched = np.zeros(len(graph.items), np.uint8)
        self._dirty = np.empty(len(graph.items) + 1, np.int64)
        self.serving = Serving(
            graph.indptr, graph.items, self.pairs, len(graph.ids), parameters, graph.centroids, self.paused
        )
        self.at(time_ms)

    def nearest(self, embedding: ArrayLike) -> Context:
        """The context of a user embedding; see `Serving.nearest`."""
        return self.serving.nearest(embedding)

    def choose(
        self,
        context: Context,
        k: int,
        rng: np.random.Generator,
        mode: str | None = None,
        exclude: Sequence[int] = (),
        candidates: Sequence[int] | None = None,
    ) -> Slate:
        """A slate for one user; see `Serving.choose`. Teaches nothing: call `decided` with what was shown."""
        return self.serving.choose(
            np.asarray(context.clusters, np.uint32),
            np.asarray(context.weights, np.uint16),
            k,
            int(rng.bit_generator.random_raw()) >> 1,
            None if mode is None else MODES[mode],
            np.asarray(exclude, np.int64),
            None if candidates is None else np.asarray(candidates, np.int64),
        )

    def decided(self, context: Context, items: Sequence[int] | NDArray[np.uint32], time_ms: int | None = None) -> None:
        """These items were shown to this user: with a default reward, that teaches it at once."""
        if self.default is not None:
            self._learn(context, items, 1.0, self.default, time_ms)

    def rewarded(
        self, context: Context, item: int, reward: float, old: float | None = None, time_ms: int | None = None
    ) -> None:
        """The item shown brought `reward`; `old` is what an earlier call said, `time_ms` the decision's time."""
        before = self.default if old is None else old
        self._learn(context, [item], float(before is None), reward - (before or 0.0), time_ms)

    def learn(
        self,
        context: Context,
        items: Sequence[int] | NDArray[np.uint32],
        rewards: NDArray[np.float64],
        time_ms: int | None = None,
    ) -> None:
        """A decision and all its rewards at once, one for each item shown: what `decided` and `rewarded` sum up to."""
        self._learn(context, items, 1.0, rewards, time_ms)

    def at(self, time_ms: int) -> None:
        """Let time pass: with a half-life every score depends on it, so all serving pairs are written anew."""
        self.time_ms = max(self.time_ms, time_ms)
        self.origin_ms, factor = self.parameters.next_origin(self.time_ms, self.origin_ms)
        if factor != 1.0:
            kernels.rebase(self.edges, factor)
        g = self.parameters.growth(self.time_ms, self.origin_ms)
        kernels.refresh_all(self.edges, self.parameters.prior, g, self.by_item.serving, self.pairs)

    def _learn(
        self,
        context: Context,
        items: Sequence[int] | NDArray[np.uint32],
        play: float,
        amount: float | NDArray[np.float64],
        time_ms: int | None,
    ) -> None:
        if not np.isfinite(amount).all():
            raise DiagError("reward", f"must be a finite number, the difference to learn is {amount}")
        n, time_ms = len(items), self.time_ms if time_ms is None else time_ms
        if time_ms > self.time_ms and self.parameters.half_life_s is not None:
            self.at(time_ms)
        weights = np.asarray(context.weights, np.float64) / 65535.0
        n_dirty = kernels.learn(
            np.asarray(items, np.int64),
            np.zeros(n, np.int64),
            np.full(n, len(weights), np.int64),
            np.asarray(context.clusters, np.uint32),
            weights,
            np.full(n, play),
            np.full(n, amount),
            np.full(n, self.parameters.growth(time_ms, self.origin_ms)),
            self.by_item.indptr,
            self.by_item.clusters,
            self.edges,
            self._touched,
            self._dirty,
            0,
        )
        dirty = self._dirty[:n_dirty]
        g = self.parameters.growth(self.time_ms, self.origin_ms)
        kernels.refresh(self.edges, self.parameters.prior, g, self.by_item.serving, dirty, self.pairs)
        self._touched[dirty] = 0
