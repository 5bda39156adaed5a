"""Processes of the weight benchmarks: a store, and robot hosts that follow a policy.

Each says one line per event on its output and ends when its input does.
"""

import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from comms.credentials import AllowList, Credentials
from comms.serving import serve
from comms.tunnel import DirectTunnel, Endpoints
from comms.weight_puller import WeightPuller
from comms.weight_service import WeightService
from user_system.core.clock import WallClock
from user_system.core.types import Array
from user_system.edge.messages import WeightsReady
from user_system.edge.weight_client import WeightClient
from user_system.hub.weight_store import WeightStore

POLICY = "p"


def modules(rng: np.random.Generator, size: int, tensors: int) -> dict[str, dict[str, Array]]:
    """Return ``size`` bytes of float32 in so many tensors, all of them new."""
    each = size // 4 // tensors
    return {
        "policy": {
            f"layer{n}": rng.standard_normal(each).astype(np.float32) for n in range(tensors)
        }
    }


class Cap:
    """A budget for a link whose rate is known: so many bytes under way, in pieces of one size."""

    def __init__(self, most: int, piece: int):
        self._most, self._piece = most, piece
        self._under_way = 0

    def chunk(self) -> int:
        """Return the size of a piece."""
        return self._piece

    def take(self, size: int, timeout_s: float) -> int | None:
        """Count ``size`` more bytes; None: there is no room."""
        del timeout_s  # one caller, who does nothing else meanwhile
        if self._under_way and self._under_way + size > self._most:
            return None
        self._under_way += size
        return size

    def done(self, ticket: int) -> None:
        """Note that a piece has arrived."""
        self._under_way -= ticket

    lost = done


def hub(pki: Path, directory: Path, address: str) -> None:
    """Serve a weight store; says its port."""
    sys.setswitchinterval(0.0005)
    store = WeightStore(directory, WallClock())
    store.open()
    with serve(
        [WeightService(store)],
        credentials=Credentials.load(pki, "hub"),
        allow=AllowList(pki),
        address=f"{address}:0",
    ) as server:
        _say(server.port)
        sys.stdin.read()
    store.close()


def edge(pki: Path, name: str, hub_address: str, directory: Path, near: str, cap: str) -> None:
    """Follow a policy as a robot host does; says version, time, and bytes that came so far."""
    sys.setswitchinterval(0.0005)
    most, _, piece = cap.partition("/")
    budget = Cap(int(most), int(piece)) if piece else None
    with closing(tunnel_to(hub_address, pki, name)) as tunnel:
        puller = WeightPuller(tunnel, budget=budget)

        def ready(policy: str, found: WeightsReady) -> None:
            del policy
            _say(found.version, time.monotonic_ns(), int(puller.stats()["bytes_pulled"]))

        client = WeightClient(
            lambda: puller,
            directory,
            ready,
            near=Path(near) if near else None,
            pack=budget is not None,
        )
        client.start()
        client.follow(POLICY)
        for _ in sys.stdin:
            _say(0, time.monotonic_ns(), int(puller.stats()["bytes_pulled"]))
        client.close()


def tunnel_to(address: str, pki: Path, name: str) -> DirectTunnel:
    """Return the way to a weight store."""
    return DirectTunnel(Endpoints(hub=address), Credentials.load(pki, name))


def _say(*facts: object) -> None:
    print(*facts, flush=True)


def main() -> None:
    """Be what the command line says."""
    kind, *arguments = sys.argv[1:]
    if kind == "hub":
        pki, directory, address = arguments
        hub(Path(pki), Path(directory), address)
    else:
        pki, name, hub_address, directory, near, cap = arguments
        edge(Path(pki), name, hub_address, Path(directory), near, cap)


if __name__ == "__main__":
    main()
