"""Random operations on the SQLite log and on the memory log, its model: both must show the same at every step."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streaming.errors import Trimmed
from streaming.log import CONTROL
from streaming.log.memory import MemoryLog
from streaming.log.sqlite import SqliteLog

SHARDS = 2
partitions = st.integers(CONTROL, SHARDS - 1)
data = st.one_of(st.binary(max_size=20), st.integers(0, 20_000).map(bytes))


class LogMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self.folder.name) / "log.sqlite")
        self.now_ms = 1_000
        self.model = MemoryLog(SHARDS, lambda: self.now_ms)
        self.log = SqliteLog(self.path, SHARDS, lambda: self.now_ms, write=True)
        self.reader = SqliteLog(self.path)

    @rule(to_ms=st.integers(0, 3_000))
    def the_clock_jumps(self, to_ms):
        self.now_ms = to_ms

    @rule(batches=st.lists(st.tuples(partitions, data), max_size=6))
    def append(self, batches):
        assert self.log.append(batches) == self.model.append(batches)

    @rule(partition=partitions, count=st.integers(200, 700))
    def append_many(self, partition, count):
        batches = [(partition, b"%d" % n) for n in range(count)]
        assert self.log.append(batches) == self.model.append(batches)

    @rule(partition=partitions, offset=st.integers(0, 30), records=st.integers(1, 8), size=st.integers(1, 40_000))
    def read(self, partition, offset, records, size):
        results = []
        for log in (self.log, self.reader, self.model):
            try:
                results.append(log.read(partition, offset, records, size))
            except Trimmed as error:
                results.append(str(error))
        assert results[0] == results[1] == results[2]

    @rule(partition=partitions, share=st.floats(-0.2, 1.2), by_reader=st.booleans())
    def trim(self, partition, share, by_reader):
        start, end = self.model.bounds(partition)
        before = start + round(share * (end - start))
        (self.reader if by_reader else self.log).trim(partition, before)
        self.model.trim(partition, before)

    @rule()
    def reopen(self):
        self.log.close()
        self.log = SqliteLog(self.path, SHARDS, lambda: self.now_ms, write=True)

    @rule()
    def reopen_all(self):
        log_id = self.log.id
        self.reader.close()
        self.reopen()
        self.reader = SqliteLog(self.path)
        assert self.log.id == self.reader.id == log_id

    @invariant()
    def they_agree(self):
        for partition in range(CONTROL, SHARDS):
            start, end = self.model.bounds(partition)
            assert self.log.bounds(partition) == self.reader.bounds(partition) == (start, end)
            assert self.reader.read(partition, start, 10**6) == self.model.read(partition, start, 10**6)

    def teardown(self):
        self.reader.close()
        self.log.close()
        self.folder.cleanup()


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
