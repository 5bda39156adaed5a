"""Plans from the head: who may have them, what travels, and what a broken stream costs."""

import time
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comms import inference_wire as coded
from comms.inference_client import InferenceLink
from comms.inference_service import InferenceService
from comms.packing import Packing
from comms.pb import inference_pb2 as pb
from comms.pb import inference_pb2_grpc
from comms.serving import serve
from comms.status import received
from comms.tunnel import DirectTunnel, Endpoints
from user_system.codec import arrays
from user_system.core.errors import ConfigError, DamageError, SpecError
from user_system.core.specs import Field
from user_system.core.types import Plan, Segment

FIELDS = {"q": Field((3,), "float32", "rad"), "eye": Field((8, 6, 3), "uint8")}
GENEROUS_S = 60.0


def wait_until(true):
    deadline = time.monotonic() + GENEROUS_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def observation(seed=0):
    rng = np.random.default_rng(seed)
    return {name: field.sample(rng) for name, field in FIELDS.items()}


class FakeDesk:
    """A policy that plans the step's own number, for the stream that is attached."""

    fields, actions = FIELDS, 2

    def __init__(self, robot):
        self.robot, self.said, self.outgoing = robot, [], None
        self.spec, self.waiting = {"horizon": 4}, 0

    def attach(self, outgoing):
        self.outgoing = outgoing

    def detach(self, outgoing):
        if self.outgoing is outgoing:
            self.outgoing = None

    def begin(self, episode, seed, version, executed):
        self.said.append(("begin", episode, seed, version, len(executed)))

    def replan(self, executed):
        self.said.append(("replan", len(executed)))

    def ask(self, episode, step, mode, asked):
        self.said.append(("ask", episode, step, mode, asked))
        plan = Plan(np.full((4, 2), step, np.float32), 9, extras={"v": np.zeros(4)})
        self.outgoing.put(coded.plan_to_reply(episode, step, plan, 1.5))


class Listener:
    """What the robot's side hears."""

    def __init__(self):
        self.replies, self.broken, self.opened_count = [], [], 0
        self.link = None

    def opened(self):
        self.opened_count += 1
        begin = pb.InferenceBegin(episode="e", seed=7, content=coded.executed_to_bytes([]))
        self.link.resume([pb.InferenceRequest(begin=begin)])

    def heard(self, reply):
        self.replies.append(reply)

    def broke(self, why):
        self.broken.append(why)


def question(step, seed=0):
    asked = coded.Asked(((step, observation(seed)),), [(np.zeros(2, np.float32), Segment.AUTO)])
    content = coded.ask_to_bytes(asked, Packing())
    ask = pb.InferenceAsk(episode="e", step=step, mode="explore", content=content)
    return pb.InferenceRequest(ask=ask)


@pytest.fixture
def desks():
    return {}


@pytest.fixture
def server(desks, credentials, allow):
    def make(robot):
        return desks.setdefault(robot, FakeDesk(robot))

    service = InferenceService({"arm-1": "host-1", "arm-2": "host-2"}, make)
    with serve([service], credentials=credentials("hub"), allow=allow) as server:
        yield server


@pytest.fixture
def dial(server, credentials):
    links, tunnels = [], []

    def dial(robot="arm-1", name="host-1", port=0):
        endpoints = Endpoints(policies={"pick": f"127.0.0.1:{port or server.port}"})
        tunnels.append(DirectTunnel(endpoints, credentials(name)))
        listener = Listener()
        listener.link = InferenceLink(tunnels[-1], "pick", robot, listener)
        links.append(listener.link)
        listener.link.start()
        return listener

    yield dial
    for link in links:
        link.close()
    for tunnel in tunnels:
        tunnel.close()


def plans(listener):
    return [r.plan for r in listener.replies if r.HasField("plan")]


def test_a_question_is_answered_with_its_plan(dial, desks):
    listener = dial()
    wait_until(lambda: listener.link.send(question(5, seed=3)))
    wait_until(lambda: plans(listener))
    assert listener.replies[0].HasField("ready")
    assert coded.spec_from_bytes(listener.replies[0].ready.content) == {"horizon": 4}
    begin, ask = desks["arm-1"].said
    assert begin == ("begin", "e", 7, 0, 0)
    assert ask[:4] == ("ask", "e", 5, "explore")
    ((step, seen),) = ask[4].seen
    assert step == 5
    for name, value in observation(3).items():
        assert np.array_equal(seen[name], value), "nothing is lost on the way"
    (message,) = plans(listener)
    assert (message.step, message.version, message.compute_ms) == (5, 9, 1.5)
    plan = coded.plan_from_message(message)
    assert plan.actions.tolist() == [[5, 5]] * 4
    assert plan.extras["v"].shape == (4,)


@pytest.mark.parametrize(("robot", "name"), [("arm-2", "host-1"), ("arm-9", "host-1")])
def test_a_host_gets_plans_of_its_own_robots_only(dial, desks, robot, name):
    listener = dial(robot, name)
    wait_until(lambda: listener.broken)
    assert f"{name!r} may not ask for plans of this robot" in listener.broken[0]
    assert not listener.replies
    assert robot not in desks


@pytest.mark.parametrize("name", ["learner", "kim", "eve", "ada", "teleop"])
def test_nobody_but_robot_hosts_gets_plans(dial, desks, name):
    listener = dial("arm-1", name)
    wait_until(lambda: listener.broken)
    assert "may not call" in listener.broken[0]
    assert not desks


def test_a_stream_that_broke_is_dialled_again_and_told_everything(dial, desks, server, cutter):
    cutter.target = server.port
    listener = dial(port=cutter.port)
    wait_until(lambda: listener.link.send(question(0)))
    wait_until(lambda: plans(listener))
    cutter.cut()
    wait_until(lambda: listener.broken and listener.opened_count == 2)
    wait_until(lambda: listener.link.send(question(1)))
    wait_until(lambda: len(plans(listener)) == 2)
    kinds = [said[0] for said in desks["arm-1"].said]
    assert kinds == ["begin", "ask", "begin", "ask"], "one policy, that is told again"


def test_a_robots_second_stream_ends_its_first(dial, desks):
    first = dial()
    wait_until(lambda: first.opened_count)
    second = dial()
    wait_until(lambda: second.opened_count)
    wait_until(lambda: first.broken)
    assert "opened again" in first.broken[0]


def test_a_message_that_is_none_ends_its_own_stream_only(dial, desks):
    other = dial("arm-2", "host-2")
    listener = dial()
    bad = question(3)
    bad.ask.content = bad.ask.content[:-1] + b"\x99"
    wait_until(lambda: listener.link.send(bad))
    wait_until(lambda: listener.broken)
    assert "checksum" in listener.broken[0]
    assert all(said[0] == "begin" for said in desks["arm-1"].said)
    wait_until(lambda: other.link.send(question(0)))
    wait_until(lambda: plans(other))
    assert not other.broken


def test_a_policy_that_falls_behind_holds_its_stream_back(dial, desks):
    listener = dial()
    wait_until(lambda: "arm-1" in desks)
    desks["arm-1"].waiting = 10_000
    for step in range(20):
        wait_until(lambda step=step: listener.link.send(question(step)))
    time.sleep(0.2)
    assert [s for s in desks["arm-1"].said if s[0] == "ask"] == []
    desks["arm-1"].waiting = 0
    wait_until(lambda: len(plans(listener)) == 20)


def test_the_first_word_is_a_hello(server, credentials):
    endpoints = Endpoints(policies={"pick": f"127.0.0.1:{server.port}"})
    tunnel = DirectTunnel(endpoints, credentials("host-1"))
    stub = inference_pb2_grpc.InferenceStub(tunnel.channel("policy:pick"))
    outgoing = SimpleQueue()
    outgoing.put(question(0))
    call = stub.Attach(iter(outgoing.get, None))
    with pytest.raises(Exception, match="begins with a hello") as caught:
        next(call)
    assert isinstance(received(caught.value, "ask"), SpecError)
    outgoing.put(None)
    tunnel.close()


def test_an_unknown_actor_is_named(credentials):
    tunnel = DirectTunnel(Endpoints(policies={"pick": "127.0.0.1:1"}), credentials("host-1"))
    with pytest.raises(ConfigError, match=r"policy:lift.*policy:pick"):
        tunnel.channel("policy:lift")
    with pytest.raises(ConfigError, match="'policy:pick' is no address"):
        Endpoints(policies={"pick": "nowhere"})


# --- the wire -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(steps=st.lists(st.integers(0, 1000), max_size=5), rows=st.integers(0, 9))
def test_what_is_asked_arrives(steps, rows):
    rng = np.random.default_rng(0)
    executed = [(rng.standard_normal(2).astype(np.float32), Segment.CORRECTION)] * rows
    asked = coded.Asked(tuple((s, observation(s)) for s in steps), executed)
    got = coded.ask_from_bytes(coded.ask_to_bytes(asked, Packing()), FIELDS, 2)
    assert [s for s, _ in got.seen] == steps
    for (_, before), (_, after) in zip(asked.seen, got.seen, strict=True):
        assert all(np.array_equal(before[name], after[name]) for name in FIELDS)
    assert [(a.tolist(), s) for a, s in got.executed] == [(a.tolist(), s) for a, s in executed]


def test_images_lose_detail_only_where_that_is_allowed():
    asked = coded.Asked(((0, observation()),), ())
    tight = coded.ask_to_bytes(asked, Packing("jpeg"))
    ((_, seen),) = coded.ask_from_bytes(tight, FIELDS, 2).seen
    assert seen["eye"].shape == (8, 6, 3)
    assert not np.array_equal(seen["eye"], observation()["eye"])
    assert np.array_equal(seen["q"], observation()["q"])


def packed(meta=None, **blocks):
    base = {"steps": [0], "images": {"o/0/eye": ["raw", [8, 6, 3]]}}
    full = {
        "o/0/q": np.zeros(3, np.float32),
        "o/0/eye": np.zeros(144, np.uint8),
        **{name.replace("__", "/"): value for name, value in blocks.items()},
    }
    full = {name: value for name, value in full.items() if value is not None}
    return arrays.pack({**base, **(meta or {})}, full)


@pytest.mark.parametrize(
    "content",
    [
        packed({"steps": "no"}),
        packed({"steps": [-1]}),
        packed({"steps": [True]}),
        packed({"steps": list(range(65))}),
        packed({"images": []}),
        packed({"images": {"o/0/eye": ["zstd", [8, 6, 3]]}}),
        packed({"images": {"o/0/eye": [["raw"], [8, 6, 3]]}}),
        packed({"images": {"o/0/eye": "raw"}}),
        packed({"images": {}}),
        packed(o__0__q=np.zeros(4, np.float32)),
        packed(o__0__q=np.full(3, np.nan, np.float32)),
        packed(o__0__q=np.zeros(3)),
        packed(o__0__q=None),
        packed(o__0__eye=np.zeros(145, np.uint8)),
        packed(executed=np.zeros((2, 3), np.float32), segment=np.ones(2, np.uint8)),
        packed(executed=np.zeros((2, 2), np.float32)),
        packed(executed=np.zeros((2, 2), np.float32), segment=np.full(2, 99, np.uint8)),
        packed(executed=np.zeros((2, 2)), segment=np.ones(2, np.uint8)),
        packed(executed=np.zeros((), np.float32), segment=np.ones(2, np.uint8)),
        packed(executed=np.zeros((4097, 2), np.float32), segment=np.ones(4097, np.uint8)),
    ],
)
def test_what_is_no_question_is_refused(content):
    with pytest.raises((DamageError, SpecError)):
        coded.ask_from_bytes(content, FIELDS, 2)


def test_what_is_too_large_to_travel_is_said_with_what_to_do():
    huge = {"eye": np.random.default_rng(0).integers(0, 255, (2400, 2400, 3), np.uint8)}
    with pytest.raises(SpecError, match=r"too large for one message.*jpeg"):
        coded.ask_to_bytes(coded.Asked(((0, huge),), ()), Packing())


def test_a_plan_names_no_version_that_records_cannot_hold():
    content = arrays.pack({}, {"actions": np.zeros((1, 2))})
    with pytest.raises(DamageError, match="no number of a version"):
        coded.plan_from_message(pb.InferencePlan(version=1 << 63, content=content))


def test_a_plan_without_actions_is_damage():
    with pytest.raises(DamageError, match="no actions"):
        coded.plan_from_message(pb.InferencePlan(content=arrays.pack({}, {})))
    with pytest.raises(DamageError, match="no specification"):
        coded.spec_from_bytes(arrays.pack({}, {}))
