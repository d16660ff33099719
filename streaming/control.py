"""Control: which policies, items, graphs and keys there are, as records that one partition orders and numbers.

A record's number n is its place in the control partition, from 1. It takes effect in a shard where the shard's own
partition holds its copy (the pointer), so the position of effect is part of that shard's log. Whatever a record
creates carries n as its number; numbers are never used twice, so a token of a policy that is gone stays gone.
"""

import re
from typing import Any, get_type_hints

import msgspec

from bandits import arms as arm_policies
from bandits.diag_linucb import DiagError, DiagParameters

DIAG_LINUCB = "diag-linucb"
ALGORITHMS = (DIAG_LINUCB, "banker", "thompson-beta", "thompson-normal", "ucb1", "epsilon-greedy", "exp3", "ftrl")
ARMS_MAX = 10_000  # arms a policy may have had in its life: a bank's row never shrinks
REWARD_MAX = 1e300
EDGE_REWARD_MAX = 1e250  # Diag-LinUCB sums rewards times up to 2^30: the sums must stay finite
DEFAULT_MAX = 3e38  # a default travels as float32
LABEL = re.compile(r"[a-z0-9._-]{1,64}")
LABELS_MAX = 16  # snapshots with a label: each is a copy of everything


class ControlError(ValueError):
    """A control record that cannot take effect; `field` names what is wrong, as in the HTTP request."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


class RewardContract(msgspec.Struct, frozen=True):
    """What a reward is, and until when it counts. `default` is what no answer means (None: nothing is learned)."""

    window_ms: int = 1_800_000
    default: float | None = 0.0
    aggregation: str = "first"
    min: float = -1e6
    max: float = 1e6


class PolicySpec(msgspec.Struct, frozen=True):
    """How a policy chooses and learns. `parameters` are the algorithm's own, each with its default where left out."""

    algorithm: str
    reward: RewardContract = RewardContract()
    parameters: dict[str, Any] = {}
    max_segments: int = 1000

    @property
    def is_diag(self) -> bool:
        return self.algorithm == DIAG_LINUCB

    def diag(self) -> DiagParameters:
        """The parameters of a Diag-LinUCB policy, complete; raises DiagError naming the parameter."""
        types, given = get_type_hints(DiagParameters), {}
        for name, value in self.parameters.items():
            if name not in types:
                raise DiagError(name, f"is no parameter of {DIAG_LINUCB}")
            try:
                given[name] = msgspec.convert(value, types[name])
            except msgspec.ValidationError as error:
                raise DiagError(name, str(error)) from None
        return DiagParameters(**given)

    def arm_policy(self) -> arm_policies.ArmPolicy:
        """The K-armed policy; raises bandits.arms.ParameterError naming the parameter."""
        return arm_policies.make(self.algorithm, self.parameters)


class GraphRef(msgspec.Struct, frozen=True):
    """A graph in use: its blob in the store, the control number that brought it, and its numbering's."""

    blob: str
    number: int
    lineage: int


class Item(msgspec.Struct):
    """An arm: position in the list is its index in the banks' rows. A removed arm keeps its row."""

    id: str
    number: int
    paused: bool = False
    removed: bool = False


class Policy(msgspec.Struct):
    """A policy as the control records made it. `version` is the number of the last record that changed it.

    Arms stand in `items`; the items of a Diag-LinUCB policy are its graph's, their numbers the table numbers/{policy}.
    The keys of `paused` are those that are not shown: a set would be written in another order by each process.
    """

    name: str
    number: int
    version: int
    spec: PolicySpec
    items: list[Item] = []
    next_item: int = 0
    graph: GraphRef | None = None
    paused: dict[str, None] = {}


class Key(msgspec.Struct, frozen=True):
    """A signing key. It verifies at once, and signs once it is the newest and has been known for a while."""

    id: int
    secret: bytes
    added_ms: int


class PolicyPut(msgspec.Struct, frozen=True, tag="policy"):
    """Makes a policy, or changes one of the same algorithm. `arms` None leaves the arms as they are."""

    name: str
    spec: PolicySpec
    arms: list[str] | None = None


class PolicyDelete(msgspec.Struct, frozen=True, tag="policy-delete"):
    """Removes a policy; rewards for it are `gone` from here on."""

    name: str


class ItemPut(msgspec.Struct, frozen=True, tag="item"):
    """Adds an arm, or pauses or resumes an item."""

    policy: str
    id: str
    paused: bool = False


class ItemDelete(msgspec.Struct, frozen=True, tag="item-delete"):
    """Removes an arm."""

    policy: str
    id: str


class GraphPut(msgspec.Struct, frozen=True, tag="graph"):
    """Gives a Diag-LinUCB policy its graph. `keeps_clusters`: same cluster numbering, so edges carry over."""

    policy: str
    blob: str
    keeps_clusters: bool = False


class KeyAdd(msgspec.Struct, frozen=True, tag="key"):
    """Adds a signing key (hex); key ids are 0 to 255 and wrap."""

    id: int
    secret: str
    added_ms: int


class SnapshotTake(msgspec.Struct, frozen=True, tag="snapshot"):
    """Keeps what every shard knows under a label: each shard's learner makes its copy once it has come to this."""

    label: str


class SnapshotDrop(msgspec.Struct, frozen=True, tag="snapshot-drop"):
    """Forgets a snapshot."""

    label: str


class Restore(msgspec.Struct, frozen=True, tag="restore"):
    """Puts a policy's parameters back to what a snapshot holds: `blobs` has one for each shard (`streaming.restore`).

    `number` and `graph` are those that the blobs were made for (graph 0: none): a policy that was made anew, or got
    another graph meanwhile, is left as it is.
    """

    policy: str
    label: str
    number: int
    graph: int
    blobs: list[str]


ControlRecord = (
    PolicyPut | PolicyDelete | ItemPut | ItemDelete | GraphPut | KeyAdd | SnapshotTake | SnapshotDrop | Restore
)
_JSON = msgspec.json.Decoder(ControlRecord)


def to_json(record: ControlRecord) -> bytes:
    """The record's bytes in the log."""
    return msgspec.json.encode(record)


def from_json(data: bytes) -> ControlRecord:
    """The record in these bytes; msgspec.ValidationError where it is of another release."""
    record: ControlRecord = _JSON.decode(data)
    return record


class ControlState(msgspec.Struct):
    """Everything that control records have said up to number `applied`.

    >>> state = ControlState()
    >>> policy = state.apply(1, PolicyPut("headlines", PolicySpec("banker"), ["a", "b"]))
    >>> policy.number, [item.number for item in policy.items]
    (1, [0, 1])
    """

    applied: int = 0
    policies: dict[str, Policy] = {}
    keys: dict[int, Key] = {}
    labels: dict[str, int] = {}
    """The snapshots that are kept, each with the number of the record that asked for it."""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "ControlState":
        return msgspec.msgpack.decode(data, type=cls)

    def apply(self, n: int, record: ControlRecord) -> Policy | None:
        """Applies record n, which must be the next; returns the policy it concerns (None: keys, snapshots).

        Raises ControlError where the record cannot take effect; it is then counted as applied, and changes nothing.
        """
        assert n == self.applied + 1, (n, self.applied)
        self.applied = n
        match record:
            case PolicyPut():
                return self._policy_put(n, record)
            case PolicyDelete():
                policy = self._existing(record.name)
                del self.policies[policy.name]
                return policy
            case ItemPut():
                return self._item_put(n, record)
            case ItemDelete():
                policy = self._existing(record.policy)
                self._live(policy, record.id).removed = True
            case GraphPut():
                policy = self._existing(record.policy)
                if not policy.spec.is_diag:
                    raise ControlError(
                        "graph",
                        f"policy {policy.name!r} is of algorithm {policy.spec.algorithm}: only "
                        f"{DIAG_LINUCB} policies have a graph",
                    )
                keeps = record.keeps_clusters and policy.graph is not None
                lineage = policy.graph.lineage if keeps and policy.graph else n
                policy.graph = GraphRef(record.blob, n, lineage)
            case KeyAdd():
                self.keys[record.id] = Key(record.id, bytes.fromhex(record.secret), record.added_ms)
                return None
            case SnapshotTake():
                self._take_label(n, record.label)
                return None
            case SnapshotDrop():
                self.labels.pop(self._label(record.label))
                return None
            case Restore():
                policy = self._existing(record.policy)
                if policy.number != record.number or (policy.graph.number if policy.graph else 0) != record.graph:
                    raise ControlError(
                        "label", f"policy {policy.name!r} was changed while its snapshot was read: restore it again"
                    )
        policy.version = n
        return policy

    def check(self, record: ControlRecord) -> None:
        """Raises ControlError where `record` could not take effect now; changes nothing."""
        ControlState.decode(self.encode()).apply(self.applied + 1, record)

    def _existing(self, name: str) -> Policy:
        if name not in self.policies:
            raise ControlError("policy", f"there is no policy {name!r}")
        return self.policies[name]

    def _live(self, policy: Policy, item_id: str) -> Item:
        for item in policy.items:
            if item.id == item_id and not item.removed:
                return item
        raise ControlError("item", f"policy {policy.name!r} has no item {item_id!r}")

    def _label(self, label: str) -> str:
        if label not in self.labels:
            raise ControlError("label", f"there is no snapshot {label!r}")
        return label

    def _take_label(self, n: int, label: str) -> None:
        check_label(label)
        if label in self.labels:
            raise ControlError("label", f"there is a snapshot {label!r}: delete it first, or choose another label")
        if len(self.labels) >= LABELS_MAX:
            raise ControlError("label", f"there are {LABELS_MAX} snapshots, as many as are kept: delete one first")
        self.labels[label] = n

    def _policy_put(self, n: int, record: PolicyPut) -> Policy:
        check_spec(record.spec)
        policy = self.policies.get(record.name)
        if policy is None:
            policy = Policy(record.name, n, n, record.spec, [], 0, None, {})
        elif not same_shape(policy.spec, record.spec):
            raise ControlError(
                "algorithm",
                f"policy {record.name!r} learns as {policy.spec.algorithm} with other "
                "parameters that shape what it has learned: delete it first, or choose another name",
            )
        if record.arms is not None:
            self._set_arms(policy, record)
        if not record.spec.is_diag and not any(not item.removed for item in policy.items):
            raise ControlError("arms", "a policy of this algorithm needs at least one arm")
        policy.spec, policy.version = record.spec, n
        self.policies[record.name] = policy
        return policy

    def _set_arms(self, policy: Policy, record: PolicyPut) -> None:
        assert record.arms is not None
        if record.spec.is_diag:
            raise ControlError("arms", f"the items of a {DIAG_LINUCB} policy come with its graph")
        if len(set(record.arms)) < len(record.arms):
            raise ControlError("arms", "an arm is named twice")
        live = {item.id for item in policy.items if not item.removed}
        new = [arm for arm in record.arms if arm not in live]
        if len(policy.items) + len(new) > ARMS_MAX:
            raise ControlError("arms", f"a policy holds at most {ARMS_MAX} arms in its life, removed ones included")
        for item in policy.items:
            if item.id not in record.arms:
                item.removed = True
        for arm in new:
            self._add_arm(policy, arm)

    def _add_arm(self, policy: Policy, item_id: str, paused: bool = False) -> None:
        policy.items.append(Item(item_id, policy.next_item, paused))
        policy.next_item += 1

    def _item_put(self, n: int, record: ItemPut) -> Policy:
        policy = self._existing(record.policy)
        if policy.spec.is_diag:
            if record.paused:
                policy.paused[record.id] = None
            else:
                policy.paused.pop(record.id, None)
        elif any(item.id == record.id and not item.removed for item in policy.items):
            self._live(policy, record.id).paused = record.paused
        elif len(policy.items) >= ARMS_MAX:
            raise ControlError("item", f"a policy holds at most {ARMS_MAX} arms in its life, removed ones included")
        else:
            self._add_arm(policy, record.id, record.paused)
        policy.version = n
        return policy


def check_label(label: str) -> None:
    """Raises ControlError where no snapshot can have this label."""
    if not LABEL.fullmatch(label):
        raise ControlError("label", "a label is 1 to 64 of a-z, 0-9, dot, underscore and hyphen")


def snapshot_label(label: str, n: int) -> str:
    """What the store calls a shard's snapshot for label `label` of control record `n`: a label may be used again.

    >>> label_of(snapshot_label("before-sale", 7))
    ('before-sale', 7)
    """
    return f"{label}@{n}"


def label_of(stored: str) -> tuple[str, int]:
    """(label, control number) of what the store calls a snapshot; number 0 where it has none."""
    label, _, n = stored.rpartition("@")
    return (label, int(n)) if label and n.isdecimal() else (stored, 0)


def same_shape(old: PolicySpec, new: PolicySpec) -> bool:
    """Whether what `old` has learned can be read by `new`: a change of spec keeps parameters only then."""
    if old.algorithm != new.algorithm:
        return False
    if old.is_diag:
        return old.diag().half_life_s == new.diag().half_life_s
    mine, theirs = old.arm_policy(), new.arm_policy()
    shape = ("rule", "regularizer", "max_outstanding")
    return all(getattr(mine, name, None) == getattr(theirs, name, None) for name in shape)


def check_spec(spec: PolicySpec) -> None:
    """Raises ControlError naming the field that no policy can have."""
    if spec.algorithm not in ALGORITHMS:
        raise ControlError("algorithm", f"{spec.algorithm!r} is not one of {', '.join(ALGORITHMS)}")
    reward = spec.reward
    if not 0 < reward.window_ms <= 2**32 - 1:
        raise ControlError("reward.window", "the window must be longer than nothing and at most 49 days")
    if reward.aggregation not in ("first", "last", "max", "sum"):
        raise ControlError("reward.aggregation", f"{reward.aggregation!r} is not one of first, last, max, sum")
    most = EDGE_REWARD_MAX if spec.is_diag else REWARD_MAX
    if not -most <= reward.min < reward.max <= most:
        raise ControlError("reward.min", f"min must be less than max, both within +-{most:g}")
    if reward.default is not None and not max(reward.min, -DEFAULT_MAX) <= reward.default <= min(
        reward.max, DEFAULT_MAX
    ):
        raise ControlError("reward.default", f"the default must lie between min and max, and within +-{DEFAULT_MAX:g}")
    if not 1 <= spec.max_segments <= 1_000_000:
        raise ControlError("max_segments", "must be 1 to 1,000,000")
    try:
        policy = spec.diag() if spec.is_diag else spec.arm_policy()
    except (DiagError, arm_policies.ParameterError) as error:
        raise ControlError(error.field.removesuffix("_s"), str(error)) from None
    if getattr(policy, "rule", None) == "classic" and reward.aggregation != "first":
        raise ControlError(
            "reward.aggregation",
            "rule classic returns a round's money once, with its first answer: use aggregation first, or rule reserve",
        )
