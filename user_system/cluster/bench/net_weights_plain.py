"""A plain gRPC stream as a way for weights: the learner serves, each edge gets one message.

Without TLS, hashes, versions or a disk, on the loopback: it exists for this comparison alone.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from comms.pb import fresh_pb2
from comms.tunnel import CHANNEL_OPTIONS
from comms.wire import named_from_proto, named_to_proto
from user_system.cluster.bench import net_weights_host as hosts
from user_system.cluster.bench.net_weights_peers import EDGES, SIZE, TENSORS

_METHOD = "/bench.Weights/Follow"
_Message = fresh_pb2.RobotState
"""Any message with named arrays."""


class _Board:
    """The newest weights, and whoever waits for them."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._version, self._message = 0, _Message()
        self._over = False

    def put(self, message: fresh_pb2.RobotState) -> None:
        """Publish."""
        with self._news:
            self._version, self._message = self._version + 1, message
            self._news.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._news:
            self._over = True
            self._news.notify_all()

    def follow(self, request: object, context: object) -> Iterator[fresh_pb2.RobotState]:
        """Yield each version."""
        del request, context
        seen = 0
        while True:
            with self._news:
                self._news.wait_for(lambda: self._version > seen or self._over)  # noqa: B023
                if self._over:
                    return
                seen, message = self._version, self._message
            yield message


def learner() -> None:
    """Publish whenever told to; says how long it took until all edges had read it."""
    sys.setswitchinterval(0.0005)
    board = _Board()
    handler = grpc.unary_stream_rpc_method_handler(
        board.follow,
        request_deserializer=_Message.FromString,
        response_serializer=_Message.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(EDGES), options=CHANNEL_OPTIONS)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("bench.Weights", {"Follow": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    argv = [sys.executable, "-m", "user_system.cluster.bench.net_weights_plain", "edge", str(port)]
    edges: list[Any] = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(EDGES)
    ]
    for edge in edges:
        edge.stdout.readline()
    time.sleep(1.0)  # until all of them wait
    print("ready", flush=True)
    rng = np.random.default_rng(0)
    for _ in sys.stdin:
        weights = hosts.modules(rng, SIZE, TENSORS)["policy"]
        began = time.monotonic_ns()
        board.put(_Message(observation=named_to_proto(weights)))
        said = [edge.stdout.readline() for edge in edges]
        if not all(said):
            break  # an edge ended; whoever compares hears of it by the end of this process
        print((max(map(int, said)) - began) / 1e9, flush=True)
    for edge in edges:
        edge.kill()
        edge.wait()
    server.stop(None)
    board.close()


def edge(port: str) -> None:
    """Follow; says when a version could be used."""
    sys.setswitchinterval(0.0005)
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS)
    follow = channel.unary_stream(
        _METHOD,
        request_serializer=_Message.SerializeToString,
        response_deserializer=_Message.FromString,
    )
    stream = follow(_Message())
    print("up", flush=True)
    for message in stream:
        if len(named_from_proto(message.observation)) == TENSORS:
            print(time.monotonic_ns(), flush=True)


def main() -> None:
    """Be what the command line says."""
    kind, *arguments = sys.argv[1:]
    learner() if kind == "learner" else edge(*arguments)


if __name__ == "__main__":
    main()
