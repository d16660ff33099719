"""Distributed croupier with real processes, under every fault that we could think of: `python -m tests.faults --help`.

    site       one Kafka broker and a Redis Cluster of six nodes behind proxies, kept for many runs
    team       two servers, two learners and a router on a name of its own: topics and keys of nobody else
    load       users: recommend, then rewards, to another server, through the router, late, twice, out of order
    troubles   what goes wrong, drawn from the run's seed
    tail       every record of the log, read while it grows, before anything of it is trimmed
    verdict    every acknowledged reward is in the log once and has one outcome; the store is what a replay gives

The main thread makes and ends processes (they die with the thread that made them) and does the troubles; the load and
the tail have threads of their own.
"""
