#!/bin/sh
# Makes one Redis Cluster of the nodes given by address, half of them masters; does nothing where there is one already.
# Each node is asked, since one that says `ok` may know of the cluster before the others do.
set -eu
first=$1

sound() {
    for node in "$@"; do
        redis-cli -h "$node" cluster info | grep -q '^cluster_state:ok' || return 1
    done
}

if ! redis-cli -h "$first" cluster info | grep -q "^cluster_known_nodes:$#"; then
    nodes=
    for node in "$@"; do nodes="$nodes $node:6379"; done
    # shellcheck disable=SC2086
    redis-cli --cluster create $nodes --cluster-replicas 1 --cluster-yes
fi
until sound "$@"; do sleep 0.5; done
echo "the cluster of $# nodes is sound"
