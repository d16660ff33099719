"""The slow twin of a shard: dictionaries, one event at a time, no batches, no kernels.

It states what the log means: the reward contract, and what Diag-LinUCB and the counting of K-armed policies learn.
"""

import copy
import math
import struct
from collections import Counter, defaultdict
from zlib import crc32

from bandits.graph import Graph
from bandits.scalar import exp2
from streaming import events, token
from streaming.control import ControlError, ControlState, Restore, from_json
from streaming.log import Record
from streaming.shards import segments_of_shard, shard_of_item
from tests.naive import arms


def split(data: bytes):
    """(index, kind, reward, event hash, sequence, slot, body) of each event; kind None for poison, 255 for a frame of
    another release."""
    head = data[:12]
    if len(data) >= 16 and data[:4] == b"CRPR" and data[4:6] != b"\x01\x00":
        (crc,) = struct.unpack("<I", data[12:16])
        if crc in (crc32(head), crc32(head + data[16:])):
            yield 0, 255, 0.0, 0, 0, 0, b""
            return
    sound = len(data) >= 16 and struct.unpack("<I", data[12:16])[0] == crc32(head) and data[:6] == b"CRPR\x01\x00"
    if not sound:
        yield 0, None, 0.0, 0, 0, 0, b""
        return
    at = 16
    for index in range(struct.unpack("<I", data[8:12])[0]):
        if at + 32 > len(data):
            yield index, None, 0.0, 0, 0, 0, b""
            return
        crc, words, _, kind, reward, key, sequence, slot = struct.unpack("<IHBBdQIB", data[at : at + 29])
        if words < 4 or at + 8 * words > len(data):
            yield index, None, 0.0, 0, 0, 0, b""
            return
        event = data[at : at + 8 * words]
        at += 8 * words
        good = crc32(event[4:]) == crc
        yield index, kind if good else None, reward, key, sequence, slot, event[32:]


def context_of(body: bytes) -> token.Context:
    """The context in an event's body, whose padding is unknown."""
    for pad in range(8):
        try:
            return token.decode(body[: len(body) - pad])
        except token.TokenError:
            continue
    raise AssertionError("no context in this body")


class NaiveShard:
    """Counts of outcomes, Diag-LinUCB's (b, d) per (policy, cluster, item id), plays and rewards per item id, and the
    slow twins of Banker's banks."""

    def __init__(self, number: int, shards: int, blobs, restored: dict[int, int] | None = None) -> None:
        self.number, self.shards, self.blobs = number, shards, blobs
        self.restored = restored or {}  # number of a Restore -> the offset up to which its snapshot had read this shard
        self.records: list[Record] = []
        self.control = ControlState()
        self.outcomes: Counter = Counter()
        self.shown: dict = defaultdict(lambda: [0.0, 0.0, 0.0])  # (policy, mode) -> items shown, answered, sum
        self.delays_s: dict = defaultdict(list)  # policy -> of first answers and of late ones
        self.edges: dict = defaultdict(lambda: [0.0, 0.0])
        self.plays: Counter = Counter()
        self.rewards: dict = defaultdict(float)
        self.aggregate: dict = {}
        self.event_ids: set = set()
        self.streams: dict = {}
        self.origin: dict = {}
        self.banks: dict = {}  # policy number -> bank keys in order of first use
        self.bankers: dict = {}  # (policy number, bank key) -> slow twin, for Banker's policies
        self.ids: dict = {}  # policy number -> {item number: id}

    def run(self, records: list[Record]) -> None:
        self.records += records
        for record in records:
            control = events.control_of(record.data)
            if control is not None:
                self._control(*control, record.time_ms)
                continue
            for _, kind, reward, key, sequence, slot, body in split(record.data):
                if kind is None:
                    self.outcomes["poison"] += 1
                elif kind == events.SEGMENT:
                    self._has_bank(sequence, key)
                elif kind == events.DECISION:
                    self._decision(context_of(body), sequence, record.time_ms)
                elif kind == events.REWARD:
                    self.outcomes[self._reward(context_of(body), slot, reward, key, record.time_ms)] += 1

    def _control(self, n: int, data: bytes, time_ms: int) -> None:
        if n != self.control.applied + 1:
            return
        before = {p.number: p for p in self.control.policies.values()}
        old = self.control.encode()
        record = from_json(data)
        try:
            policy = self.control.apply(n, record)
        except ControlError:
            self.control = ControlState.decode(old)
            self.control.applied = n
            return
        if policy is None:
            return
        number = policy.number
        self.origin.setdefault(number, time_ms)
        if isinstance(record, Restore):
            self._restore(policy, self.restored[n])
        if policy.spec.is_diag:
            old_graph = ControlState.decode(old).policies.get(policy.name)
            if policy.graph is not None and (old_graph is None or old_graph.graph != policy.graph):
                self._graph(policy, old_graph.graph if old_graph else None)
        else:
            self.ids[number] = {item.number: item.id for item in policy.items if not item.removed}
            for (of, _), twin in self.bankers.items():
                if of == number and len(policy.items) > twin.K:
                    twin.grow(len(policy.items))
        assert number in before or policy.name in self.control.policies

    def _restore(self, policy, head: int) -> None:
        """What was learned of the policy up to `head`, and nothing since."""
        then = NaiveShard(self.number, self.shards, self.blobs, self.restored)
        then.run([record for record in self.records if record.offset < head])
        number = policy.number
        same = {item for n, item in self.ids[number].items() if then.ids[number].get(n) == item}
        for table, old in ((self.plays, then.plays), (self.rewards, then.rewards)):
            for key in [key for key in table if key[0] == number]:
                del table[key]
            table.update({key: old[key] for key in old if key[0] == number and key[-1] in same})
        for edge in [edge for edge in self.edges if edge[0] == number]:
            del self.edges[edge]
        kept = [edge for edge in then.edges if edge[0] == number and edge[2] in same and edge in self.allowed]
        self.edges.update({edge: list(then.edges[edge]) for edge in kept})
        for key in [key for key in self.bankers if key[0] == number]:
            del self.bankers[key]
        self.bankers.update({key: copy.deepcopy(twin) for key, twin in then.bankers.items() if key[0] == number})
        for key, twin in self.bankers.items():
            if key[0] == number and len(policy.items) > twin.K:
                twin.grow(len(policy.items))

    def _graph(self, policy, before) -> None:
        graph = Graph.from_bytes(self.blobs(policy.graph.blob))
        number = policy.number
        known = {item_id: item for item, item_id in self.ids.get(number, {}).items()}
        for item_id in graph.ids:
            if item_id not in known:
                known[item_id] = policy.next_item
                policy.next_item += 1
        self.ids[number] = {known[item_id]: item_id for item_id in graph.ids}
        kept = before is not None and before.lineage == policy.graph.lineage
        there = {
            (number, c, graph.ids[j])
            for c in range(len(graph.indptr) - 1)
            for j in graph.items[graph.indptr[c] : graph.indptr[c + 1]]
            if shard_of_item(number, known[graph.ids[j]], self.shards) == self.number
        }
        for edge in [edge for edge in self.edges if edge[0] == number and (not kept or edge not in there)]:
            del self.edges[edge]
        for name in [name for name in self.plays if name[0] == number and name[1] not in graph.ids]:
            del self.plays[name]
        self.allowed = {edge for edge in getattr(self, "allowed", set()) if edge[0] != number} | there

    def _policy(self, context: token.Context):
        for policy in self.control.policies.values():
            lineage = policy.graph.lineage if policy.graph else 0
            ready = policy.graph is not None or not policy.spec.is_diag
            if policy.number == context.policy and lineage == context.lineage and ready:
                return policy
        return None

    def _mine(self, context: token.Context, number: int) -> bool:
        of_items = context.kind == token.DIAG
        return not of_items or shard_of_item(context.policy, number, self.shards) == self.number

    def _has_bank(self, number: int, key: int) -> bool:
        """Whether the bank is there, or there was room to make it."""
        for policy in self.control.policies.values():
            if policy.number == number and not policy.spec.is_diag:
                banks = self.banks.setdefault(number, [0])
                if key not in banks and len(banks) < 1 + segments_of_shard(policy.spec.max_segments, self.shards):
                    banks.append(key)
                return key in banks
        return False

    def _bank(self, policy, c: token.Context, kind: int, slot: int, time_ms: int, **rewards) -> bool:
        """One operation on the twin of a Banker's bank, made on first use; whether the bank could pay for it."""
        if policy.spec.algorithm != "banker":
            return True
        learner, n_arms = policy.spec.arm_policy(), len(policy.items)
        if (c.policy, c.bank) not in self.bankers:
            twin = arms.Classic(n_arms, room=learner.max_outstanding) if learner.classic else arms.Reserve(n_arms)
            self.bankers[c.policy, c.bank] = twin
        op = {"kind": kind, "first": False, "old": 0.0, "new": 0.0, "log_time_ms": time_ms, **rewards}
        op |= {name: getattr(c, name) for name in ("decision", "time_ms", "window_ms", "p", "w", "a", "c")}
        op["default"] = math.nan if c.default is None else c.default
        op["arm"] = [item.number for item in policy.items].index(int(c.items[slot]))
        return self.bankers[c.policy, c.bank].learn(op)

    def _decision(self, c: token.Context, sequence: int, time_ms: int) -> None:
        stream = c.decision >> 32
        last = self.streams.get(stream, -1)
        policy = self._policy(c)
        if sequence <= last:
            self.outcomes["decisions_duplicate"] += 1
            return
        self.outcomes["decisions_lost"] += sequence - last - 1
        self.streams[stream] = sequence
        if policy is None:
            self.outcomes["decisions_gone"] += 1
            return
        if self._mine(c, int(c.items[0])):
            self.outcomes["decisions_" + token.MODES[c.mode]] += 1
            self.shown[c.policy, c.mode][0] += len(c.items)
        if c.kind == token.ARMS:
            funded = c.funded or policy.spec.arm_policy().learns_slate
            shown = c.items.tolist() if policy.spec.arm_policy().learns_slate else c.items.tolist()[:1]
            for number in shown if self._has_bank(c.policy, c.bank) and funded else []:
                if number in self.ids[c.policy]:
                    self.plays[c.policy, c.bank, self.ids[c.policy][number]] += 1
                    self._bank(policy, c, arms.PLAY, 0, time_ms)
            return
        for number in c.items.tolist():
            item = self.ids[c.policy].get(number)
            if item is None or not self._mine(c, number):
                continue
            self.plays[c.policy, item] += 1
            if c.default is not None:
                self._teach(policy, c, item, 1.0, c.default, time_ms)

    def _reward(self, c: token.Context, slot: int, reward: float, key: int, time_ms: int) -> str:
        policy = self._policy(c)
        number = int(c.items[slot])
        item = self.ids.get(c.policy, {}).get(number)
        if policy is None or item is None or not self._mine(c, number):
            return "gone"
        delay_s = max(0, time_ms - c.time_ms) / 1000
        if time_ms > c.time_ms + c.window_ms:
            self.delays_s[c.policy].append(delay_s)
            return "late"
        if not policy.spec.reward.min <= reward <= policy.spec.reward.max:
            return "out_of_range"
        slate = policy.spec.is_diag or policy.spec.arm_policy().learns_slate
        funded = slate or (slot == 0 and c.funded)
        shown = self.shown[c.policy, c.mode]
        how = token.AGGREGATIONS[c.aggregation]
        if key and how != "first":
            if (c.decision, slot, key) in self.event_ids:
                return "duplicate"
            self.event_ids.add((c.decision, slot, key))
        if (c.decision, slot) not in self.aggregate:
            self.aggregate[c.decision, slot] = reward
            shown[1] += 1
            shown[2] += reward
            self.delays_s[c.policy].append(delay_s)
            return "applied" if funded and self._answer(policy, c, slot, c.default, reward, time_ms) else "unfunded"
        old = self.aggregate[c.decision, slot]
        new = {"first": old, "last": reward, "max": max(old, reward), "sum": old + reward}[how]
        if how == "first" or (not key and (how == "sum" or new == old)):
            return "duplicate"
        self.aggregate[c.decision, slot] = new
        shown[2] += new - old
        return "amended" if funded and self._answer(policy, c, slot, old, new, time_ms) else "unfunded"

    def _answer(self, policy, c: token.Context, slot: int, old: float | None, new: float, time_ms: int) -> bool:
        """Whether there was a bank, with money, to learn it."""
        item = self.ids[c.policy][int(c.items[slot])]
        if c.kind == token.DIAG:
            self.rewards[c.policy, item] += new - (old or 0.0)
            self._teach(policy, c, item, 1.0 if old is None else 0.0, new - (old or 0.0), time_ms)
            return True
        if not self._has_bank(c.policy, c.bank):
            return False
        self.rewards[c.policy, c.bank, item] += new - (old or 0.0)
        return self._bank(policy, c, arms.ANSWER, slot, time_ms, first=old is None, old=old or 0.0, new=new)

    def _teach(self, policy, c: token.Context, item: str, play: float, amount: float, time_ms: int) -> None:
        half_life_s = policy.spec.diag().half_life_s
        g = 1.0
        if half_life_s:
            half_life_ms = 1000.0 * half_life_s
            g = exp2((min(c.time_ms, time_ms + 10 * half_life_ms) - self.origin[c.policy]) / half_life_ms)
        for cluster, q in zip(c.clusters.tolist(), c.weights.tolist(), strict=True):
            edge = (c.policy, cluster, item)
            if edge in self.allowed:
                w = q / 65535
                self.edges[edge][0] += w * amount * g
                self.edges[edge][1] += play * w * w * g
