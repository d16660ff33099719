"""One shard as a deterministic state machine: state and records in, the next state and a delta out.

Nothing here reads a clock, a poll or a commit boundary: the only time is the records' log time. However the records
are batched, the tables come out the same, bit for bit.

    records -> scan: rows of EVENT -> contract: outcome of each -> per policy: the updates, the kernels -> tables

Control records split a batch; so does the moment when a forgetting policy rebases its accumulators.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandits import arms as arm_policies
from bandits import kernels
from streaming import changes, contract, events, restore, scan
from streaming.changes import NAME
from streaming.control import ControlError, ControlState, Policy, Restore, from_json
from streaming.log import Record
from streaming.prepared import Arms, Blobs, Diag, Here, Prepared, contract_policies, prepare
from streaming.state import State
from streaming.token import MODES

DEAD_LETTERS_MAX = 1000
REBASE_EVERY = 20  # half-lives between two rebases: with `scan.AHEAD` half-lives of clocks ahead, g stays below 2^30


class UnknownRecord(RuntimeError):
    """A sound record of a layout that this release does not know. The shard stops: skipping would not replay."""


def decay_exponent(time_ms: int, origin_ms: int, half_life_ms: float) -> int:
    """The exponent that g leaves out at this log time; it grows by REBASE_EVERY at a time."""
    return math.floor((time_ms - origin_ms) / half_life_ms / REBASE_EVERY) * REBASE_EVERY


class Shard:
    """The state machine of one shard. `blobs` fetches a graph by its hash: content, so no outside influence.

    `step` applies records; `state.take_delta()` then holds all that they changed.
    """

    def __init__(self, number: int, shards: int, state: State, blobs: Blobs) -> None:
        self.number = number
        self.shards = shards
        self.state = state
        self._here = Here(number, shards, state, blobs)
        self.control = ControlState()
        if "control" in state:
            self.control = ControlState.decode(state["control"].tobytes())
        self._policies: dict[int, Prepared] = {}
        for policy in self.control.policies.values():
            self._prepare(policy)
        if "log_time" not in state:
            state.write("log_time", np.zeros((1, 1), np.int64))
        for name, dtype in (("outcomes/0", np.int64), ("dead_letters", np.int64), ("streams", np.int64)):
            if name not in state:
                state.write(name, np.zeros((1, len(contract.COLUMNS)) if name == "outcomes/0" else (0, 2), dtype))
        self._contract_tables()
        self._load_streams()
        self.answered = contract.AnsweredSet(state)

    # ------------------------------------------------------------------------------------------------------ batches

    def step(self, records: Sequence[Record]) -> int:
        """Applies whole records in order; returns how many events they held, control records not counted.

        Raises UnknownRecord for a layout of another release.
        """
        n_events = 0
        records = self._in_time(records)
        batch: list[Record] = []
        for record in records:
            control = events.control_of(record.data)
            if control is None and not (batch and self._rebases(record.time_ms)):
                batch.append(record)
                continue
            n_events += self._learn(batch)
            batch = [record] if control is None else []
            if control is not None:
                self._apply_control(*control, record.time_ms)
        n_events += self._learn(batch)
        if records:
            self.answered.expire(records[-1].time_ms)
        return n_events

    @property
    def log_time_ms(self) -> int:
        """Log time as of the last record."""
        return int(self.state["log_time"][0, 0])

    def _in_time(self, records: Sequence[Record]) -> list[Record]:
        """The records with times that never go back: a broker's clock may, and time here is their running maximum."""
        now_ms = self.log_time_ms
        ordered = []
        for record in records:
            now_ms = max(now_ms, record.time_ms)
            ordered.append(record if record.time_ms == now_ms else record._replace(time_ms=now_ms))
        if now_ms > self.log_time_ms:
            self.state["log_time"][0, 0] = now_ms
            self.state.changed("log_time", np.zeros(1, np.int64))
        return ordered

    def _rebases(self, time_ms: int) -> bool:
        return any(
            decay_exponent(time_ms, *self._origin(diag)) > self._exponent(diag)
            for diag in self._policies.values()
            if isinstance(diag, Diag) and diag.half_life_ms
        )

    def _learn(self, records: list[Record]) -> int:
        if not records:
            return 0
        self._rebase(records[0].time_ms)
        buffer = scan.buffer([record.data for record in records])
        times = np.array([record.time_ms for record in records], np.int64)
        rows = np.zeros(scan.count_events(buffer), scan.EVENT)
        rows = rows[: scan.scan(buffer, times, scan.CRC_TABLES, rows)]
        counts = np.zeros((len(self._numbers) + 1, len(contract.COLUMNS)), np.int64)
        self._resolve(rows, counts, records)
        self._bury(rows, records)
        for p, number in enumerate(self._numbers):
            mine = np.flatnonzero(rows["pidx"] == p)
            if len(mine) == 0:
                continue
            policy = self._policies[number]
            if isinstance(policy, Diag):
                self._learn_diag(policy, buffer, rows, mine)
            else:
                self._learn_arms(policy, buffer, rows, mine, counts[p + 1])
        for p, number in enumerate((0, *self._numbers)):
            if counts[p].any():
                self.state[f"outcomes/{number}"][0] += counts[p]
                self.state.changed(f"outcomes/{number}", np.zeros(1, np.int64))
                if number:
                    self._save_told(p - 1, number)
        self.answered.save()
        self._save_streams(records[-1].time_ms)
        return len(rows)

    def _resolve(self, rows: NDArray[np.void], counts: NDArray[np.int64], records: list[Record]) -> None:
        at = 0
        while True:
            stopped = contract.resolve(
                rows, at, len(rows), self._table, self.answered.arrays, self._streams, counts, self._told
            )
            if stopped == contract.DONE:
                return
            if stopped < contract.DONE:
                row = rows[-2 - stopped]
                raise UnknownRecord(
                    f"shard {self.number}, offset {records[row['record']].offset}, event {row['index']}: its layout is "
                    "of another release of croupier; run the release that wrote it, or upgrade this one"
                )
            at = stopped
            if self._streams.sizes[0] + 1 > len(self._streams.stream):
                self._grow_streams()
            if len(self.answered) + 2 > len(self.answered.arrays.decision):
                self.answered.grow()

    def _bury(self, rows: NDArray[np.void], records: list[Record]) -> None:
        poison = rows[rows["kind"] == scan.POISON]
        if len(poison) == 0:
            return
        before = int(self.state["outcomes/0"][0, contract.POISONED])
        offsets = [records[row["record"]].offset for row in poison]
        letters = np.column_stack([np.array(offsets, np.int64), poison["index"].astype(np.int64)])
        for i, letter in enumerate(letters):
            at = np.array([(before + i) % DEAD_LETTERS_MAX])
            self.state.put("dead_letters", at, letter.reshape(1, 2))

    # ----------------------------------------------------------------------------------------------------- learning

    def _learn_diag(self, diag: Diag, buffer: scan.Buffer, rows: NDArray[np.void], mine: NDArray[np.int64]) -> None:
        number = diag.policy.number
        table = self.state[f"edges/{number}"]
        totals = self.state[f"items/{number}"]
        shown = int(rows["k"][mine].sum())
        context = int(rows["m"][mine].sum())
        item, start, count, seen = (np.empty(shown, np.int64) for _ in range(4))
        play, amount, scale = (np.empty(shown) for _ in range(3))
        clusters, weights = np.empty(context, np.uint32), np.empty(context)
        origin, half_life = self._origin(diag)
        n, n_seen = scan.expand_diag(
            buffer, rows, mine, diag.index_of, origin, half_life, self._exponent(diag),
            item, start, count, play, amount, scale, clusters, weights, totals, seen,
        )  # fmt: skip
        dirty = np.empty(min(len(table), int(count[:n].sum())) + 1, np.int64)
        edges = diag.edges
        n_dirty = kernels.learn(
            item[:n], start[:n], count[:n], clusters, weights, play, amount, scale,
            edges.indptr, edges.clusters, table, diag.touched, dirty, 0,
        )  # fmt: skip
        diag.touched[dirty[:n_dirty]] = 0
        self.state.changed(f"edges/{number}", dirty[:n_dirty])
        self.state.changed(f"items/{number}", seen[:n_seen])

    def _learn_arms(
        self,
        arms: Arms,
        buffer: scan.Buffer,
        rows: NDArray[np.void],
        mine: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> None:
        policy = arms.policy
        bank_of_row = self._banks(arms, buffer, rows, mine)
        shown = int(rows["k"][mine].astype(np.int64).sum())
        arm, bank, source = (np.empty(shown, np.int64) for _ in range(3))
        told = np.flatnonzero(rows["kind"][mine] != events.SEGMENT)
        n = scan.expand_arms(
            buffer, rows, mine[told], bank_of_row[told], arms.index_of, arms.learner.learns_slate, arm, bank, source
        )
        homeless = (bank_of_row[told] < 0) & (rows["kind"][mine[told]] == events.REWARD)
        self._unfund(rows, mine[told][homeless], counts)
        if n == 0:
            return
        ops = arm_policies.operations(n)
        ops["arm"], ops["bank"] = arm[:n], bank[:n]
        of = rows[source[:n]]
        for name in ("decision", "time_ms", "window_ms", "log_time_ms", "p", "w", "a", "c", "old", "new", "first"):
            ops[name] = of[name]
        ops["default"] = np.where(of["no_default"] == 1, np.nan, of["default"])
        ops["kind"] = np.where(of["kind"] == events.DECISION, arm_policies.PLAY, arm_policies.ANSWER)
        status = np.zeros(n, np.uint8)
        states = self.state[f"banks/{policy.number}"]
        arms.learner.learn(states, len(policy.items), ops, status)
        refused = (status == arm_policies.UNFUNDED) & (ops["kind"] == arm_policies.ANSWER)
        self._unfund(rows, source[:n][refused], counts)
        self.state.changed(f"banks/{policy.number}", bank[:n])

    @staticmethod
    def _unfund(rows: NDArray[np.void], which: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Rewards that were to be learned and that the bank could not pay for: their one outcome is `unfunded`."""
        for row in which:
            counts[rows[row]["outcome"]] -= 1
            counts[contract.UNFUNDED] += 1
            rows[row]["outcome"] = contract.UNFUNDED

    def _banks(
        self, arms: Arms, buffer: scan.Buffer, rows: NDArray[np.void], mine: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The row of the bank that each event belongs to, made on first use; -1 where there is no room for it."""
        named = rows["kind"][mine] == events.SEGMENT
        keys = np.where(named, rows["key"][mine], rows["bank"][mine])
        unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        number = arms.policy.number
        for i in np.argsort(first, kind="stable"):
            key = int(unique[i])
            if key not in arms.rows and len(arms.rows) < arms.rows_max:
                arms.rows[key] = self._add_bank(arms, key)
        for i in np.flatnonzero(named):
            row = arms.rows.get(int(keys[i]), 0)
            if row > 0 and not self.state[f"bank_names/{number}"][row, 0]:
                event = rows[mine[i]]["at"] - events.EVENT_SIZE
                size = int(buffer.u16[event // 2 + 2]) * 8
                name = buffer.u8[event + events.EVENT_SIZE : event + size].tobytes().rstrip(b"\0")
                self.state.put(f"bank_names/{number}", np.array([row]), np.array([[name]], NAME))
        return np.array([arms.rows.get(int(key), -1) for key in unique], np.int64)[inverse]

    def _add_bank(self, arms: Arms, key: int) -> int:
        number = arms.policy.number
        row = self.state.append(f"banks/{number}", arms.learner.empty(len(arms.policy.items)).reshape(1, -1))
        self.state.append(f"bank_keys/{number}", np.array([[key]], np.uint64))
        self.state.append(f"bank_names/{number}", np.array([[b""]], NAME))
        return row

    # ---------------------------------------------------------------------------------------------------- forgetting

    def _origin(self, diag: Diag) -> tuple[int, float]:
        return int(self.state[f"decay/{diag.policy.number}"][0, 0]), diag.half_life_ms

    def _exponent(self, diag: Diag) -> int:
        return int(self.state[f"decay/{diag.policy.number}"][0, 1])

    def _rebase(self, time_ms: int) -> None:
        """Scales the accumulators of forgetting policies by a power of two, so that g never overflows."""
        for diag in self._policies.values():
            if not isinstance(diag, Diag) or not diag.half_life_ms:
                continue
            exponent = decay_exponent(time_ms, *self._origin(diag))
            behind = exponent - self._exponent(diag)
            if behind <= 0:
                continue
            number = diag.policy.number
            self.state[f"edges/{number}"][:] = np.ldexp(self.state[f"edges/{number}"], -behind)
            self.state.changed(f"edges/{number}", np.arange(len(self.state[f"edges/{number}"])))
            self.state[f"decay/{number}"][0, 1] = exponent
            self.state.changed(f"decay/{number}", np.zeros(1, np.int64))

    # ------------------------------------------------------------------------------------------------------ streams

    def _save_streams(self, log_time_ms: int) -> None:
        s = self._streams
        n = int(s.sizes[0])
        live = log_time_ms - s.heard_ms[:n] <= contract.STREAM_IDLE_MS
        order = np.argsort(s.stream[:n], kind="stable")
        order = order[live[order]]
        table = np.column_stack([s.stream[order], s.last[order], s.heard_ms[order]])
        if table.shape != self.state["streams"].shape or not np.array_equal(table, self.state["streams"]):
            self.state.write("streams", table)
        if not live.all():
            self._load_streams()

    def _save_told(self, p: int, number: int) -> None:
        for name, now in (("shown", self._told.shown[p]), ("delays", self._told.delays[p : p + 1])):
            table = self.state[f"{name}/{number}"]
            differ = np.flatnonzero((table != now).any(axis=1))
            table[differ] = now[differ]
            self.state.changed(f"{name}/{number}", differ)

    def _load_streams(self) -> None:
        table = self.state["streams"]
        room = max(64, 2 * len(table))
        stream, last, heard_ms = (np.zeros(room, np.int64) for _ in range(3))
        if len(table):
            stream[: len(table)], last[: len(table)], heard_ms[: len(table)] = table.T
        self._streams = contract.Streams(stream, last, heard_ms, np.array([len(table)]))

    def _grow_streams(self) -> None:
        s = self._streams
        pad = np.zeros(len(s.stream), np.int64)
        self._streams = contract.Streams(
            np.concatenate([s.stream, pad]), np.concatenate([s.last, pad]), np.concatenate([s.heard_ms, pad]), s.sizes
        )

    # ------------------------------------------------------------------------------------------------------ control

    def _apply_control(self, n: int, data: bytes, log_time_ms: int) -> None:
        """Applies control record n if it is the next; a repeat is passed over."""
        if n != self.control.applied + 1:
            return
        try:
            record = from_json(data)
        except msgspec.ValidationError as error:
            raise UnknownRecord(
                f"shard {self.number}: control record {n} is of another release of croupier ({error}); run the release "
                "that wrote it, or upgrade this one"
            ) from None
        before = {policy.number: policy for policy in self.control.policies.values()}
        after = ControlState.decode(self.control.encode())
        try:
            changed = after.apply(n, record)
        except ControlError:
            after = ControlState.decode(self.control.encode())
            after.applied, changed = n, None
        self.control = after
        if changed is not None and changed.name not in after.policies:
            changes.remove(self._here, changed.number)
            self._policies.pop(changed.number, None)  # not there: a Diag-LinUCB policy that has no graph yet
        elif changed is not None:
            if isinstance(record, Restore):
                restore.put_in_place(self.state, changed, self._here.blobs(record.blobs[self.number]))
            changes.change(self._here, changed, before.get(changed.number), log_time_ms)
            self._prepare(changed)
        self.state.write("control", np.frombuffer(after.encode(), np.uint8))
        # Decoding made new objects of every policy, not only of the one that changed.
        for policy in after.policies.values():
            kept = self._policies.get(policy.number)
            if kept is not None:
                self._policies[policy.number] = kept._replace(policy=policy)
        self._contract_tables()

    def _prepare(self, policy: Policy) -> None:
        prepared = prepare(self._here, policy)
        if prepared is not None:
            self._policies[policy.number] = prepared

    def _contract_tables(self) -> None:
        """The policies as the contract's kernel sees them."""
        self._numbers = sorted(self._policies)
        shown = np.zeros((len(self._numbers), len(MODES), len(contract.SHOWN)))
        delays = np.zeros((len(self._numbers), len(contract.DELAY_S) + 2), np.int64)
        for p, number in enumerate(self._numbers):
            shown[p], delays[p] = self.state[f"shown/{number}"], self.state[f"delays/{number}"][0]
        self._told = contract.Told(shown, delays)
        self._table = contract_policies([self._policies[number] for number in self._numbers])
