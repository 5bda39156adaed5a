"""What the store of weights is asked directly: which versions it keeps, and to go back to one.

Weights themselves go from a learner by ``weight_publisher`` and to a robot host by
``weight_puller``; ``weight_service`` serves all of it. ``proto/weights.proto`` has the order.
"""

import grpc

from comms.pb import weights_pb2 as pb
from comms.pb import weights_pb2_grpc
from comms.status import received
from comms.tunnel import Tunnel


def list_versions(tunnel: Tunnel, policy: str = "") -> list[pb.VersionEntry]:
    """Return the versions that the store keeps, oldest first; for engineers.

    Raises:
        LinkError: the store cannot be reached.
    """
    try:
        reply: pb.VersionList = stub(tunnel).List(pb.ListRequest(policy=policy), timeout=10.0)
    except grpc.RpcError as error:
        raise received(error, "list weights") from error
    return list(reply.versions)


def roll_back(tunnel: Tunnel, policy: str, version: int) -> int:
    """Make the content of an older version current again; return the version that it became.

    Raises:
        ConfigError: no such version is kept.
        LinkError: the store cannot be reached.
    """
    request = pb.RollbackRequest(policy=policy, version=version)
    try:
        reply: pb.RollbackReply = stub(tunnel).Rollback(request, timeout=10.0)
    except grpc.RpcError as error:
        raise received(error, f"go back to version {version} of {policy}") from error
    return int(reply.version)


def stub(tunnel: Tunnel) -> weights_pb2_grpc.WeightStoreStub:
    """Return the store's methods over a tunnel."""
    channel = tunnel.channel("weights")
    return weights_pb2_grpc.WeightStoreStub(channel)  # type: ignore[no-untyped-call]
