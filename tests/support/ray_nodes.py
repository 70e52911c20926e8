"""Two nodes of a Ray cluster on this machine, in a program of their own: Ray starts processes and threads as it likes.

Prints {"address", "nodes": [pid of each node's raylet]}; a line `N` on stdin kills node N, the end of stdin all.
"""

import json
import sys

from ray.cluster_utils import Cluster

MIB = 2**20


def main() -> None:
    small = {"object_store_memory": 80 * MIB, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "memory": 2**30, **small})
    nodes = [cluster.add_node(num_cpus=1, memory=8 * 2**30, **small) for _ in range(2)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    print(json.dumps({"address": cluster.address, "nodes": raylets}), flush=True)
    for line in sys.stdin:
        cluster.remove_node(nodes[int(line)], allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
