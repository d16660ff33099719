"""A policy's definition over HTTP, and `streaming.control.PolicySpec`, which the log holds.

Over HTTP a definition is flat: the algorithm, its parameters, `arms`, `max_segments` and `reward` in one object.
There is one struct for each algorithm, made from the parameters that its class has (`bandits.arms`, or
`bandits.diag_linucb.DiagParameters`), so a new parameter appears here by itself; `ABOUT` only describes them.
"""

import re
from dataclasses import asdict
from dataclasses import fields as dataclass_fields
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from bandits import arms as arm_policies
from bandits.diag_linucb import DiagParameters
from server import errors
from server.bodies import field_problem
from server.schemas import TEXT_MAX, GraphInfo, ItemId
from streaming import control

UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")
POLICY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Duration = Annotated[
    float | str, Meta(description='A duration: seconds, or a text such as "500ms", "30s", "30m", "12h", "7d".')
]

# What each parameter is, in words; a type stands here only where the class is less exact than JSON can be.
ABOUT: dict[str, tuple[str, Any]] = {
    "clusters_per_user": ("Nearest clusters that make a user's context.", None),
    "alpha": ("Width of the confidence bound: more explores more.", None),
    "mode": ("explore (upper bound), exploit (mean) or thompson (a draw).", Literal["explore", "exploit", "thompson"]),
    "explore_share": ("Share of requests that explore; the rest exploit.", None),
    "randomize_top": ("Draw the slate uniformly from the best n; 1: off.", None),
    "fresh": ("Items never shown: first, or by their prior.", Literal["first", "prior"]),
    "fresh_share": ("Most of a slate that fresh items may take.", None),
    "prior": ("Ridge prior of an edge, in plays.", None),
    "temperature": ("Of the softmax over similarities to clusters.", None),
    "half_life": ("After this time a reward counts half; null: nothing is forgotten.", Duration | None),
    "regularizer": ("log-barrier adapts to rare rewards; tsallis is the paper's.", Literal["log-barrier", "tsallis"]),
    "rule": ("reserve is robust to delays; classic is the paper's.", Literal["reserve", "classic"]),
    "c": ("Size of investments: more explores more. null: the rule's own default.", None),
    "rho": ("Share of the outstanding money kept in reserve (rule classic).", None),
    "max_outstanding": ("Unanswered plays a bank remembers.", None),
    "epsilon": ("Share of draws that explore uniformly.", None),
    "propensity": ("Compute the exact chance of a draw by quadrature (milliseconds; up to 64 arms).", None),
}
# Examples for those whose default is null.
EXAMPLES: dict[str, Any] = {"half_life": "7d", "c": 2.0}


class RewardBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a reward is, and until when it counts."""

    window: Annotated[Duration, Meta(description="Rewards count this long after the decision.", examples=["30m"])] = (
        "30m"
    )
    default: Annotated[
        float | Literal["none"] | None,
        Meta(description="What no answer means; null or none: nothing is learned without one.", examples=[0]),
    ] = 0.0
    aggregation: Annotated[
        Literal["first", "last", "max", "sum"],
        Meta(description="Which of several rewards counts; sum needs event_id.", examples=["first"]),
    ] = "first"
    min: Annotated[float, Meta(description="Smallest believable reward.", examples=[0])] = -1e6
    max: Annotated[float, Meta(description="Largest believable reward.", examples=[1])] = 1e6


class PolicyAnswer(msgspec.Struct, frozen=True):
    """A policy as this host shows it."""

    name: Annotated[str, Meta(description="Its name.", examples=["films"])]
    number: Annotated[int, Meta(description="Number of the change that made it; never used again.", examples=[3])]
    version: Annotated[int, Meta(description="Number of its last change.", examples=[7])]
    definition: Annotated[
        dict[str, Any],
        Meta(
            description="As PUT takes it, every default filled in; arms are listed by .../arms.",
            examples=[{"algorithm": "diag-linucb", "alpha": 1.0, "reward": {"window": "30m", "default": 0.0}}],
        ),
    ]
    items: Annotated[int, Meta(description="Items it has, paused ones included.", examples=[3])]
    paused: Annotated[int, Meta(description="Items that are paused.", examples=[0])]
    graph: Annotated[
        GraphInfo | None, Meta(description="The graph in use; null for K-armed policies and before the first.")
    ] = None


class PolicyList(msgspec.Struct, frozen=True):
    """All policies, by name."""

    policies: Annotated[list[PolicyAnswer], Meta(description="The policies.")]


def _defaults(algorithm: str) -> dict[str, tuple[Any, Any]]:
    """Parameter -> (type, default) of an algorithm, as its class has them."""
    if algorithm == control.DIAG_LINUCB:
        kind: Any = DiagParameters
    else:
        kind = type(arm_policies.make(algorithm, {}))
    hints = get_type_hints(kind)
    return {f.name.removesuffix("_s"): (hints[f.name], f.default) for f in dataclass_fields(kind)}


def _struct(algorithm: str) -> type[msgspec.Struct]:
    fields: list[Any] = []
    for name, (kind, default) in PARAMETERS[algorithm].items():
        help, exact = ABOUT[name]
        examples = [EXAMPLES[name] if default is None else default]
        fields.append((name, Annotated[exact or kind, Meta(description=help, examples=examples)], default))
    arms = Annotated[
        list[ItemId],
        Meta(description="The arms; left out, an existing policy keeps those it has.", examples=[["a", "b", "c"]]),
    ]
    if algorithm != control.DIAG_LINUCB:
        fields.append(("arms", arms | None, None))
    segments = Annotated[
        int, Meta(description="Segments with a bank of their own; further ones share.", examples=[1000])
    ]
    fields.append(("max_segments", segments, 1000))
    reward = Annotated[RewardBody, Meta(description="What a reward is; left out: as by default.")]
    fields.append(("reward", reward, RewardBody()))
    name = "".join(part.capitalize() for part in algorithm.split("-")) + "Policy"
    return msgspec.defstruct(
        name,
        fields,
        tag=algorithm,
        tag_field="algorithm",
        frozen=True,
        forbid_unknown_fields=True,
        module=__name__,
        namespace={"__doc__": f"A policy of algorithm {algorithm}."},
    )


PARAMETERS = {algorithm: _defaults(algorithm) for algorithm in control.ALGORITHMS}
BODIES = {algorithm: _struct(algorithm) for algorithm in control.ALGORITHMS}
PolicyBody: Any = None
for _body in BODIES.values():
    PolicyBody = _body if PolicyBody is None else PolicyBody | _body


def duration_ms(value: float | str, field: str) -> int:
    """Milliseconds of seconds or of a text with a unit; a 422 problem names `field`.

    >>> duration_ms("30m", "reward.window"), duration_ms(1.5, "reward.window")
    (1800000, 1500)
    """
    ms = float(value) * 1000 if not isinstance(value, str) else None
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        ms = float(match[1]) * UNITS_MS[match[2]]
    if ms is None or not 1 <= ms <= 1e15:
        raise errors.invalid(
            field, f'{errors.shown(str(value))} is no duration; send seconds, or a text such as "30s", "30m" or "12h".'
        )
    return round(ms)


def duration_text(ms: int) -> str:
    """The shortest text for a duration.

    >>> duration_text(1_800_000), duration_text(90_000), duration_text(1)
    ('30m', '90s', '1ms')
    """
    unit = next(unit for unit in ("d", "h", "m", "s", "ms") if ms % UNITS_MS[unit] == 0)
    return f"{ms // UNITS_MS[unit]}{unit}"


def check_name(name: str) -> None:
    if not POLICY_NAME.fullmatch(name):
        raise errors.invalid(
            "policy",
            "A policy's name has 1 to 100 letters, digits, dots, dashes and underscores, no dash or dot first.",
        )


def to_spec(body: Any) -> tuple[control.PolicySpec, list[str] | None]:
    """The spec and the arms (None: left out) of a decoded definition; raises a 422 problem."""
    algorithm = type(body).__struct_config__.tag
    reward = body.reward
    parameters = {name: getattr(body, name) for name in PARAMETERS[algorithm]}
    if "half_life" in parameters:
        value = parameters.pop("half_life")
        parameters["half_life_s"] = None if value is None else duration_ms(value, "half_life") / 1000
    spec = control.PolicySpec(
        algorithm,
        control.RewardContract(
            duration_ms(reward.window, "reward.window"),
            None if reward.default == "none" else reward.default,
            reward.aggregation,
            reward.min,
            reward.max,
        ),
        parameters,
        body.max_segments,
    )
    try:
        control.check_spec(spec)
    except control.ControlError as error:
        raise errors.invalid(error.field, errors.as_sentence(str(error))) from None
    arms = getattr(body, "arms", None)
    if arms is not None:
        _check_arms(arms)
    return spec, arms


def _check_arms(arms: list[str]) -> None:
    if not arms:
        raise errors.invalid("arms", "A policy needs at least one arm.")
    seen: set[str] = set()
    for i, arm in enumerate(arms):
        if arm in seen:
            raise errors.invalid(f"arms[{i}]", f"The arm {errors.shown(arm)} is named twice.")
        seen.add(arm)
    if len(arms) > control.ARMS_MAX:
        raise errors.invalid("arms", f"A policy holds at most {control.ARMS_MAX:,} arms; these are {len(arms):,}.")


def definition(spec: control.PolicySpec) -> dict[str, Any]:
    """What PUT would take to make this spec, every default filled in."""
    policy: Any = spec.diag() if spec.is_diag else spec.arm_policy()
    parameters = asdict(policy)
    if spec.is_diag:
        seconds = parameters.pop("half_life_s")
        parameters["half_life"] = None if seconds is None else duration_text(round(seconds * 1000))
    reward = msgspec.structs.asdict(spec.reward)
    reward = {"window": duration_text(reward.pop("window_ms")), **reward}
    return {"algorithm": spec.algorithm, **parameters, "max_segments": spec.max_segments, "reward": reward}


def patched(spec: control.PolicySpec, patch: dict[str, Any]) -> Any:
    """The definition with the members of `patch` in place of its own; those of `reward` one by one.

    null is a value here (no default reward, no half-life) and not a removal.
    """
    base = definition(spec)
    if patch.get("algorithm", spec.algorithm) != spec.algorithm:
        raise errors.conflict(
            f"The policy is of algorithm {spec.algorithm}, and what it has learned is of no use to another; delete it "
            "first, or choose another name."
        )
    reward = patch.get("reward", {})
    if not isinstance(reward, dict):
        raise errors.invalid("reward", "Expected an object.")
    merged = {**base, **patch, "reward": {**base["reward"], **reward}}
    try:
        return msgspec.convert(merged, BODIES[spec.algorithm])
    except msgspec.ValidationError as error:
        raise field_problem(error) from None


def item_path_id(item: str) -> str:
    """An item id from a path; it obeys what ids in bodies obey."""
    if not 1 <= len(item) <= TEXT_MAX:
        raise errors.invalid("item", f"An item's id has 1 to {TEXT_MAX:,} characters.")
    return item
