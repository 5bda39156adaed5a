"""Requests that are in order, for every method: what lies behind a first check is reached too."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import Message
from kit import made
from kit.honest import hello

from comms import data_wire, inference_wire, wire
from comms.packing import Packing
from comms.pb import (
    data_pb2,
    enrol_pb2,
    experience_pb2,
    hub_pb2,
    inference_pb2,
    shards_pb2,
    weights_pb2,
)
from comms.pieces import cut
from robots.sim import SimFranka
from user_system.core.interfaces import Draw
from user_system.core.types import Segment

PIECE = 700
"""Bytes of a message's pieces."""


def seeds() -> Iterator[tuple[str, list[Message]]]:
    """Yield (method, its requests)."""
    yield (
        "/user_system.v1.Hub/Attach",
        [
            hub_pb2.HostEvent(hello=hello("host-2", "arm-2")),
            hub_pb2.HostEvent(want=hub_pb2.WantEpisode(robot="arm-2")),
            hub_pb2.HostEvent(episode=hub_pb2.EpisodeReport(robot="arm-2", episode="e", steps=3)),
            hub_pb2.HostEvent(answer=hub_pb2.Answer(id="i", robot="arm-2", ok=True, mode="auto")),
        ],
    )
    yield "/user_system.v1.Experience/Stream", experience("host-2", "arm-2")
    yield (
        "/user_system.v1.Experience/Label",
        [
            experience_pb2.LabelRequest(
                episode="arm-1.1.0", name="success", version="v", success=True
            )
        ],
    )
    opening = data_wire.encode_opening(data_wire.Opening(), None)
    draw = data_wire.encode_draw(Draw(n=4))
    yield (
        "/user_system.v1.Data/Attach",
        [
            data_pb2.DataRequest(open=data_pb2.DataOpen(session="0" * 32, content=opening)),
            data_pb2.DataRequest(ask=data_pb2.DataAsk(kind=1, number=1, content=draw)),  # type: ignore[arg-type]
            data_pb2.DataRequest(
                ask=data_pb2.DataAsk(kind=3, content=data_wire.encode_view("all"))
            ),  # type: ignore[arg-type]
            data_pb2.DataRequest(close=data_pb2.DataClose()),
        ],
    )
    entry = weights_pb2.TensorEntry(
        module="m", name="w", dtype="float32", shape=[2, 2], hash="0" * 64
    )
    manifest = weights_pb2.Manifest(policy="p", hash="1" * 64, tensors=[entry])
    opens = weights_pb2.Opening(manifest=manifest, sending=["0" * 64])
    yield (
        "/user_system.v1.WeightStore/Publish",
        [
            weights_pb2.PublishPart(opening=opens),
            weights_pb2.PublishPart(data=bytes(16)),
        ],
    )
    wants = weights_pb2.Want(policy="p", asks=[1 << 16])
    yield (
        "/user_system.v1.WeightStore/Pull",
        [
            weights_pb2.PullRequest(want=wants),
            weights_pb2.PullRequest(ask=weights_pb2.Ask(size=1 << 16)),
        ],
    )
    claim = hub_pb2.ClaimRequest(robot="arm-1", operator="ada", realtime=True)
    yield "/user_system.v1.Hub/Claim", [claim]
    ask = hub_pb2.Request(id="i", robot="arm-2", event="estop", operator="ada", token=1)
    yield "/user_system.v1.Hub/Ask", [ask]
    report = hub_pb2.ProcessReport(name="learner", kind="learner", figures={"updates": 1.0})
    yield "/user_system.v1.Hub/Report", [report]
    yield "/user_system.v1.Inference/Attach", plans("arm-2")
    told = data_pb2.DataPart()
    yield (
        "/user_system.v1.Shards/Offer",
        [
            shards_pb2.ShardUp(hello=shards_pb2.ShardHello(shard="host-2")),
            shards_pb2.ShardUp(part=told),
            shards_pb2.ShardUp(end=shards_pb2.ShardEnd(kind="LinkError", text="t")),
        ],
    )
    yield "/user_system.v1.Enrolment/Join", [enrol_pb2.JoinRequest()]


def experience(host: str, robot: str) -> list[Message]:
    """Return a stream of experience, some of it in pieces."""
    source = experience_pb2.Source(producer=robot, epoch=1, boot="boot-1")
    fragments = [
        experience_pb2.Fragments(fragments=[wire.fragment_to_proto(made.fragment(robot, 1, k))])
        for k in range(5)
    ]
    return [
        experience_pb2.HostMessage(hello=experience_pb2.Hello(host=host, sources=[source])),
        *(experience_pb2.HostMessage(fragments=one) for one in fragments),
        *cut(fragments[0], lambda: PIECE),
        experience_pb2.HostMessage(lost=experience_pb2.Lost(source=source, sequence=1, reason="r")),
    ]


def plans(robot: str) -> list[Message]:
    """Return what a robot's host says to its policy at the head."""
    spec = SimFranka(SimFranka.config_type()).spec
    seen: Any = {name: np.zeros(f.shape, f.dtype) for name, f in spec.observation.items()}
    executed = [(np.zeros(len(spec.action.names), np.float32), Segment.AUTO)]
    asked = inference_wire.ask_to_bytes(inference_wire.Asked(((1, seen),), executed), Packing())
    return [
        inference_pb2.InferenceRequest(hello=inference_pb2.InferenceHello(robot=robot)),
        inference_pb2.InferenceRequest(begin=inference_pb2.InferenceBegin(episode="e", seed=1)),
        inference_pb2.InferenceRequest(
            ask=inference_pb2.InferenceAsk(episode="e", step=1, mode="explore", content=asked)
        ),
        inference_pb2.InferenceRequest(replan=inference_pb2.InferenceReplan(content=asked)),
    ]
