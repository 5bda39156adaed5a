"""Ray's object store as a way for weights: one put, four actors that get it, on this machine."""

import sys
import tempfile
import time

import numpy as np
import ray

from user_system.cluster import ray_node, resources
from user_system.cluster.bench import net_weights_host as hosts
from user_system.cluster.bench.net_weights_peers import EDGES, SIZE, TENSORS
from user_system.core.types import Array

_STORE = 80 << 20


class Edge:
    """An actor that takes weights."""

    def take(self, refs: list["ray.ObjectRef[dict[str, Array]]"]) -> float:
        """Get them and look at each: then they can be used."""
        weights = ray.get(refs[0])
        return float(sum(tensor[0] for tensor in weights.values()))


def main() -> None:
    """Publish whenever told to; says how long it took."""
    ray_node.stay_local()
    with tempfile.TemporaryDirectory(prefix="us-") as directory:
        ray.init(
            num_cpus=EDGES,
            _temp_dir=directory,
            include_dashboard=False,
            _node_ip_address=resources.LOOPBACK,
            object_store_memory=_STORE,
            log_to_driver=False,
        )
        edges = [ray.remote(Edge).options(num_cpus=0).remote() for _ in range(EDGES)]
        rng = np.random.default_rng(0)
        print("ready", flush=True)
        for _ in sys.stdin:
            weights = hosts.modules(rng, SIZE, TENSORS)["policy"]
            began = time.perf_counter()
            ref = ray.put(weights)
            ray.get([edge.take.remote([ref]) for edge in edges])
            print(time.perf_counter() - began, flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main()
