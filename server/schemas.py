"""What goes over the wire, as msgspec structs: they decode and check the requests, encode the answers, and the OpenAPI
document is made from them, with a description and an example for each field.

Lower-case JSON names are the struct's own. Requests refuse members they do not know; answers leave out nothing.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

K_MAX = 255  # the token's count of items is one byte
CLUSTERS_MAX = 255  # and so is its count of clusters
TEXT_MAX = 1000

Mode = Literal["explore", "exploit", "thompson"]

PolicyName = Annotated[str, Meta(min_length=1, max_length=TEXT_MAX, description="The policy.", examples=["headlines"])]
ItemId = Annotated[str, Meta(min_length=1, max_length=TEXT_MAX, description="An item's id.", examples=["b"])]
DecisionId = Annotated[
    str,
    Meta(
        max_length=4096,
        description="The decision's signed token: send it back, unchanged, with each reward.",
        examples=["AQAAAgcAAAB"],
    ),
]


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Who asks: an embedding, or clusters with weights, or a segment. Nothing at all is the segment "all"."""

    embedding: (
        Annotated[
            list[float],
            Meta(
                min_length=1,
                description="The user's embedding, as many numbers as the graph's centroids have.",
                examples=[[0.12, -0.5, 0.33]],
            ),
        ]
        | None
    ) = None
    clusters: (
        Annotated[
            list[Annotated[int, Meta(ge=0, le=2**32 - 1)]],
            Meta(
                min_length=1,
                max_length=CLUSTERS_MAX,
                description="The user's clusters, in place of an embedding; none twice.",
                examples=[[4, 17]],
            ),
        ]
        | None
    ) = None
    weights: (
        Annotated[
            list[Annotated[float, Meta(ge=0)]],
            Meta(
                max_length=CLUSTERS_MAX,
                description="One weight for each cluster; divided by their sum. Without weights all are equal.",
                examples=[[0.8, 0.2]],
            ),
        ]
        | None
    ) = None
    segment: (
        Annotated[
            str,
            Meta(
                max_length=TEXT_MAX,
                description="For the K-armed policies: users of one segment share one bank of estimates.",
                examples=["all"],
            ),
        ]
        | None
    ) = None


ALL = User()


class RecommendRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What to choose, and for whom."""

    policy: PolicyName
    user: Annotated[User, Meta(description='Who asks; left out: the segment "all".', examples=[{"segment": "all"}])] = (
        ALL
    )
    k: Annotated[
        int, Meta(ge=1, le=K_MAX, description="How many items; not more than the policy has.", examples=[1])
    ] = 1
    exclude: (
        Annotated[
            list[str],
            Meta(
                description="Items not to show. Ids that the policy does not have are ignored: a history holds items "
                "long gone.",
                examples=[["a"]],
            ),
        ]
        | None
    ) = None
    candidates: (
        Annotated[
            list[str],
            Meta(
                description="Choose among these only; at least one must be known and not paused.",
                examples=[["a", "b", "c"]],
            ),
        ]
        | None
    ) = None
    mode: (
        Annotated[
            Mode, Meta(description="How to choose this time, in place of the policy's mode.", examples=["explore"])
        ]
        | None
    ) = None


class Item(msgspec.Struct, frozen=True, gc=False):
    """One place of the slate."""

    id: ItemId
    score: Annotated[float, Meta(description="What the policy ranked it by; no unit.", examples=[0.1])]
    propensity: (
        Annotated[
            float,
            Meta(
                description="Chance of this item at this place; null where it has no exact value.",
                examples=[0.41],
            ),
        ]
        | None
    )


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What to show, best first."""

    decision_id: DecisionId
    policy: PolicyName
    version: Annotated[
        int,
        Meta(description="The policy's version: the number of its last change that this worker knows.", examples=[7]),
    ]
    items: Annotated[list[Item], Meta(description="The items, best first.")]


class FeedbackRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What the world answered to one item of one decision."""

    decision_id: DecisionId
    item: ItemId
    reward: Annotated[
        float,
        Meta(description="Bigger is better. Any finite scale; within the policy's min and max.", examples=[1.0]),
    ]
    event_id: (
        Annotated[
            str,
            Meta(
                max_length=TEXT_MAX,
                description="Makes this reward one of a kind: sent twice it counts once. Required where rewards are "
                "summed.",
                examples=["order-77"],
            ),
        ]
        | None
    ) = None


# Refusals before the log. What comes later (late, duplicate, ...) is an outcome, counted in the learner's commit.
RefusalReason = Literal[
    "bad-token",  # decision_id: not signed by this server, or altered
    "unknown-policy",  # decision_id: the policy was deleted
    "unknown-item",  # item: not one of the decision's items
    "out-of-range",  # reward: |reward| > 1e300; the policy's own min and max are an outcome, not a refusal
    "missing-event-id",  # event_id: the policy's aggregation is sum
    "invalid",  # the field named in `field` is missing, of another type, or unknown (found by the route)
]


class Verdict(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What became of one reward. Accepted: it is in the log, durably; whether it was late or a duplicate is counted."""

    # A factory, so that omit_defaults never omits it.
    status: Annotated[
        Literal["accepted", "refused"], Meta(description="Accepted means durably in the log.", examples=["accepted"])
    ] = field(default_factory=lambda: "accepted")
    reason: Annotated[RefusalReason, Meta(description="Why it was refused.", examples=["bad-token"])] | None = None
    field: Annotated[str, Meta(description="The field at fault.", examples=["decision_id"])] | None = None
    detail: Annotated[str, Meta(description="The same as a sentence.", examples=["Not signed here."])] | None = None


ACCEPTED = Verdict()


class FeedbackAnswer(msgspec.Struct, frozen=True):
    """A verdict for each row, in the order they were sent."""

    results: Annotated[
        list[Verdict],
        Meta(
            description="One for each row.",
            examples=[
                [
                    {"status": "accepted"},
                    {"status": "refused", "reason": "bad-token", "field": "decision_id", "detail": "Not signed here."},
                ]
            ],
        ),
    ]


class GraphInfo(msgspec.Struct, frozen=True):
    """The graph in use."""

    version: Annotated[str, Meta(description="Hash of its content.", examples=["9f2c51d0a1b24c5e8d7f6a5b4c3d2e1f"])]
    lineage: Annotated[int, Meta(description="Number of the upload that began this cluster numbering.", examples=[2])]
    clusters: Annotated[int, Meta(description="User clusters.", examples=[500])]
    dim: Annotated[int, Meta(description="Length of a user embedding; 0: callers send clusters.", examples=[32])]
    items: Annotated[int, Meta(description="Items.", examples=[3706])]
    edges: Annotated[int, Meta(description="Edges between clusters and items.", examples=[50000])]


class ItemInfo(msgspec.Struct, frozen=True):
    """One item of a policy."""

    id: ItemId
    number: Annotated[int, Meta(description="Its number in the log; never used for another item.", examples=[1])]
    paused: Annotated[bool, Meta(description="A paused item is not shown; its rewards still teach.", examples=[False])]
    clusters: (
        Annotated[
            list[int], Meta(description="Clusters it has edges to; null for the K-armed policies.", examples=[[0, 3]])
        ]
        | None
    ) = None


class Arm(msgspec.Struct, frozen=True):
    """One arm and what has been learned about it."""

    id: ItemId
    mean: Annotated[float, Meta(description="Estimated reward.", examples=[0.11])] | None
    width: (
        Annotated[float, Meta(description="How unsure the estimate is; null where not known.", examples=[0.02])] | None
    )
    probability: (
        Annotated[
            float, Meta(description="Chance to be drawn next; null where it has no exact value.", examples=[0.41])
        ]
        | None
    )
    plays: Annotated[float, Meta(description="How often it was shown.", examples=[120.0])]
    rewards: Annotated[float, Meta(description="Sum of its rewards.", examples=[13.0])]
    paused: Annotated[bool, Meta(description="Not shown at present.", examples=[False])]


class Arms(msgspec.Struct, frozen=True):
    """A page of arms, in the policy's order."""

    policy: PolicyName
    segment: Annotated[str, Meta(description="Whose bank this is.", examples=["all"])]
    total: Annotated[int, Meta(description="Arms on all pages.", examples=[3])]
    arms: Annotated[list[Arm], Meta(description="The arms of this page.")]


class Changed(msgspec.Struct, frozen=True):
    """A change, ordered and durable."""

    version: Annotated[int, Meta(description="Number of the change in the control log.", examples=[7])]
    shown: Annotated[
        bool, Meta(description="Every worker of this host shows it already (else within moments).", examples=[True])
    ]


class SnapshotAnswer(msgspec.Struct, frozen=True):
    """A snapshot that is kept under a label."""

    label: Annotated[str, Meta(description="Its label.", examples=["before-sale"])]
    version: Annotated[int, Meta(description="Number of the change that asked for it.", examples=[7])]
    copies: Annotated[int, Meta(description="Shards that have made their copy.", examples=[4])]
    shards: Annotated[int, Meta(description="Shards there are.", examples=[4])]
    complete: Annotated[bool, Meta(description="Every shard has made its copy: it can be restored.", examples=[True])]
    time_ms: Annotated[
        int | None, Meta(description="Log time of the newest copy, ms since the epoch.", examples=[1763800000000])
    ]
    size_bytes: Annotated[int, Meta(description="What the copies take in the store.", examples=[1048576])]


class ItemPutBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item to add, or to pause. A diag-linucb item needs an embedding or clusters when it is new."""

    paused: Annotated[
        bool, Meta(description="A paused item is not shown; its rewards still teach.", examples=[False])
    ] = False
    embedding: (
        Annotated[
            list[float],
            Meta(
                min_length=1,
                description="diag-linucb: the item's embedding; it gets edges to the clusters of the highest inner "
                "product, as many as items have on average.",
                examples=[[0.1, 0.7, -0.2]],
            ),
        ]
        | None
    ) = None
    clusters: (
        Annotated[
            list[Annotated[int, Meta(ge=0, le=2**32 - 1)]],
            Meta(
                min_length=1, description="diag-linucb: the clusters it gets edges to; none twice.", examples=[[0, 3]]
            ),
        ]
        | None
    ) = None


class ItemPatchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change about an item."""

    paused: Annotated[bool, Meta(description="A paused item is not shown; its rewards still teach.", examples=[True])]


class Status(msgspec.Struct, frozen=True):
    """Whether this worker can recommend, and what is away."""

    ready: Annotated[bool, Meta(description="It can recommend and is not draining.", examples=[True])]
    draining: Annotated[bool, Meta(description="It has been told to stop.", examples=[False])]
    degraded: Annotated[
        list[str],
        Meta(description="A sentence for each thing that is away: log, store, stale parameters.", examples=[[]]),
    ]
    policies: Annotated[int, Meta(description="Policies known.", examples=[2])]
    staleness_ms: (
        Annotated[
            int,
            Meta(
                description="How old the newest parameters are; null when nothing waits to be learned.", examples=[12]
            ),
        ]
        | None
    )


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error (RFC 9457): `type` for programs, `detail` for people, `field` says where."""

    type: Annotated[
        str, Meta(description="What kind of error; stable.", examples=["urn:croupier:problem:invalid-field"])
    ]
    title: Annotated[str, Meta(description="The kind in words.", examples=["Invalid field"])]
    status: Annotated[int, Meta(description="The HTTP status.", examples=[422])]
    detail: Annotated[
        str, Meta(description="What is wrong and what would do.", examples=["Expected `float`, got `str`."])
    ]
    field: Annotated[str, Meta(description="Path to the field at fault.", examples=["user.embedding[3]"])] | None = None
    retry_after: (
        Annotated[float, Meta(description="Try again after so many seconds (also a header).", examples=[1.0])] | None
    ) = None
