"""A policy at the head: plans come in their own time, and judgements do not wait for them."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Role
from comms.inference_service import InferenceService
from comms.serving import serve
from comms.tunnel import DirectTunnel, Endpoints
from user_system.codec import weights as codec
from user_system.core.interfaces import Judgement, ResetPlan
from user_system.core.ports import Manifest, TensorEntry
from user_system.core.specs import PolicySpec
from user_system.core.types import Plan, Purpose, Segment
from user_system.edge.messages import Assignment, WeightsReady
from user_system.edge.mind import Mind
from user_system.edge.remote import Remote
from user_system.edge.rings import Duplex
from user_system.edge.served import PolicyDesk
from user_system.edge.weight_files import Folder
from user_system.edge.worker import SeatConfig, WorkerServer
from user_system.edge.worker_client import Acting, Advice, Away, Failure, Plans, WorkerClient

EPISODE = Assignment("arm", Purpose.TRAIN, "reach", 3, "e1")


class Deep:
    """A policy of chunks that is slow, remembers everything, and misbehaves when told to."""

    def __init__(self, robot, history=1):
        self.robot, self.said, self.delay_s = robot, [], 0.0
        self.release = threading.Event()
        self.mischief, self.version = "", 0
        spec = robot.SPEC
        self.spec = PolicySpec(
            {"position": spec.observation["position"]},
            spec.action,
            spec.control_hz,
            history=history,
            horizon=4,
            execute=4,
        )

    def load(self, weights):
        self.version = weights.version

    def reset(self, *, seed, reason):
        self.said.append((reason, seed))

    def observe(self, executed, segment):
        self.said.append(("executed", float(executed[0]), segment))

    def act(self, observation, *, mode, noise=None):
        if self.mischief == "raise":
            raise ValueError("no idea")
        if self.mischief == "hang":
            self.release.wait(60.0)
        time.sleep(self.delay_s)
        self.said.append(("act", observation["position"][..., 0].tolist(), mode))
        at = float(np.asarray(observation["position"]).reshape(-1)[-2])
        return Plan(np.full((4, 2), at, np.float32), self.version)


class Head:
    """Policies of two robots behind a real listener, and workers that ask them."""

    def __init__(self, directory, processes, history):
        self.directory, self.processes = directory, processes
        authority = Authority.open(directory / "pki")
        roles = {"policy-pick": Role.SERVICE, "host": Role.ROBOT}
        for name, role in roles.items():
            authority.issue(name, role)
        self.policies = {robot: Deep(processes, history) for robot in ("arm", "leg")}
        self.desks, self.needed, self.parts = {}, [], []
        self.listen()

    def listen(self, address="127.0.0.1:0"):
        pki = self.directory / "pki"
        service = InferenceService(dict.fromkeys(self.policies, "host"), self.desk)
        self.server = serve(
            [service],
            credentials=Credentials.load(pki, "policy-pick"),
            allow=AllowList(pki),
            address=address,
        )
        return self

    def desk(self, robot):
        mind = Mind("deep", lambda: self.policies[robot])
        self.desks[robot] = PolicyDesk(mind, self.needed.append)
        return self.desks[robot]

    def worker(self, robot="arm", port=0):
        where = Endpoints(policies={"pick": f"127.0.0.1:{port or self.server.port}"})
        tunnel = DirectTunnel(where, Credentials.load(self.directory / "pki", "host"))
        task = self.processes.Reach()
        seat = SeatConfig(
            robot,
            self.directory / robot,
            "deep",
            "reach",
            lambda: None,
            lambda: task,
            away=lambda tell: Remote(tunnel, "pick", robot, tell),
        )
        server = WorkerServer([seat], orphan_after_s=60.0, priority=0)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        client = WorkerClient(Duplex(self.directory / robot, "connect"))
        self.parts.append((server, thread, client, tunnel))
        return Robot(client)

    def close(self):
        for policy in self.policies.values():
            policy.release.set()
        for server, thread, client, tunnel in self.parts:
            server.stop()
            thread.join(20.0)
            client.close()
            tunnel.close()
        self.server.stop()


class Robot:
    """An agent's end of a worker, and all that it heard."""

    def __init__(self, client):
        self.client, self.news = client, []

    def poll(self):
        self.news += self.client.poll()
        return self

    def of(self, kind):
        return [item for item in self.poll().news if isinstance(item, kind)]

    def ask(self, step, executed=None, plan=True, mode="explore"):
        observation = {
            "position": np.full(2, step, np.float32),
            "goal": np.zeros(2, np.float32),
        }
        action = None if executed is None else np.full(2, executed, np.float32)
        self.client.step(step, observation, action, Segment.AUTO, step, mode=mode, plan=plan)


@pytest.fixture
def make_head(tmp_path, processes):
    heads = []

    def make(history=1):
        heads.append(Head(tmp_path, processes, history))
        return heads[-1]

    yield make
    for head in heads:
        head.close()


@pytest.fixture
def begin(wait_for):
    def begin(robot, assignment=EPISODE):
        wait_for(lambda: robot.poll().client.alive, "a greeting")
        robot.client.begin(assignment)
        wait_for(lambda: robot.of(ResetPlan), "the task's reset")
        return robot

    return begin


def test_judgements_come_at_once_and_plans_when_they_are_there(make_head, begin, wait_for):
    head = make_head()
    head.policies["arm"].delay_s = 0.4
    robot = begin(head.worker())
    assert robot.client.spec.horizon == 4
    robot.ask(0)
    for step in range(1, 4):
        wait_for(lambda step=step: len(robot.of(Advice)) == step, "an answer")
        robot.ask(step, executed=0.0, plan=False)
    wait_for(lambda: len(robot.of(Advice)) == 4, "all answers")
    assert not robot.of(Plans), "three steps were judged before there was a plan"
    answers = robot.of(Advice)
    assert [a.later for a in answers] == [True, False, False, False]
    assert [a.judgement is not None for a in answers] == [False, True, True, True]
    (came,) = wait_for(lambda: robot.of(Plans), "the plan")
    assert came.step == 0
    assert came.plan.actions.shape == (4, 2)
    assert came.took_ms >= came.compute_ms >= 400.0
    assert robot.client.silent_s == robot.client.thinking_s == 0.0


def test_questions_that_later_ones_overtook_are_not_planned(make_head, begin, wait_for):
    head = make_head()
    policy = head.policies["arm"]
    policy.mischief = "hang"
    robot = begin(head.worker())
    robot.ask(0)
    wait_for(lambda: head.desks["arm"].busy_s > 0, "the first thought")
    for step in range(1, 4):
        robot.ask(step, executed=0.0)
    wait_for(lambda: head.desks["arm"].waiting >= 9, "three questions that wait")
    policy.mischief = ""
    policy.release.set()
    wait_for(lambda: len(robot.of(Plans)) == 4, "what became of them")
    assert [(p.step, p.plan is not None) for p in robot.of(Plans)] == [
        (0, True),
        (1, False),
        (2, False),
        (3, True),
    ]
    # What was executed reached the policy all the same, in order, before it acted again.
    kinds = [said[0] for said in policy.said]
    assert kinds == ["episode", "act", "executed", "executed", "executed", "act"]


def test_only_new_observations_travel_and_the_history_is_whole(
    make_head, begin, wait_for, monkeypatch
):
    head = make_head(history=3)
    sent = []
    from comms import inference_wire

    original = inference_wire.ask_to_bytes

    def noting(asked, packing):
        sent.append([step for step, _ in asked.seen])
        return original(asked, packing)

    monkeypatch.setattr(inference_wire, "ask_to_bytes", noting)
    robot = begin(head.worker())
    for step in range(8):
        robot.ask(step, executed=step, plan=step in {0, 2, 7})
        wait_for(lambda step=step: len(robot.of(Advice)) == step + 1, "an answer")
    wait_for(lambda: len(robot.of(Plans)) == 3, "the plans")
    acted = [said[1] for said in head.policies["arm"].said if said[0] == "act"]
    assert acted == [[0, 0, 0], [0, 1, 2], [5, 6, 7]]
    assert sent == [[0], [1, 2], [5, 6, 7]]


@pytest.mark.parametrize("mischief", ["raise", "hang"])
def test_a_plugin_that_fails_is_named_and_stops_nobody_else(make_head, begin, wait_for, mischief):
    head = make_head()
    head.policies["arm"].mischief = mischief
    robot, other = begin(head.worker()), begin(head.worker("leg"))
    robot.ask(0)
    if mischief == "raise":
        (failure,) = wait_for(lambda: robot.of(Failure), "a failure")
        assert "'deep' could not act" in failure.error
        assert "no idea" in failure.error
    else:
        wait_for(lambda: head.desks["arm"].busy_s > 0.1, "a hang")
    other.ask(0)
    wait_for(lambda: other.of(Plans), "the other's plan")
    robot.ask(1, executed=0.0, plan=False)
    answered = 2 if mischief == "hang" else 1
    wait_for(lambda: len(robot.of(Advice)) >= answered, "judgements meanwhile")


def lay_down(folder, version):
    array = np.zeros(1)
    rows = codec.entries({"policy": {"w": array}})
    entries = tuple(TensorEntry(*row) for row in rows)
    manifest = Manifest("deep", version, codec.entries_hash(rows), entries)
    laid = Folder(folder).lay(manifest, {rows[0].hash: array.tobytes()}, {}, None)
    return WeightsReady(version, str(laid.path), time.monotonic())


def test_the_head_chooses_the_weights_and_says_which_act(make_head, begin, wait_for, tmp_path):
    head = make_head()
    robot = begin(head.worker())
    desk = head.desks["arm"]
    assert [a.version for a in robot.of(Acting)] == [0]
    desk.found(lay_down(tmp_path, 3))
    wait_for(lambda: robot.of(Acting)[-1].version == 3, "version 3")
    robot.ask(0)
    wait_for(lambda: robot.of(Plans)[-1:], "a plan")
    assert robot.of(Plans)[-1].plan.version == 3
    # An evaluation pins one that is not there yet; nothing newer acts meanwhile.
    robot.client.begin(replace(EPISODE, episode="e2", version=2, purpose=Purpose.EVAL))
    wait_for(lambda: head.needed == [2], "a wish for version 2")
    desk.found(lay_down(tmp_path, 4))
    desk.found(lay_down(tmp_path, 2))
    wait_for(lambda: robot.of(Acting)[-1].version == 2, "version 2")
    robot.client.begin(replace(EPISODE, episode="e3"))
    wait_for(lambda: robot.of(Acting)[-1].version == 4, "the newest again")


def test_without_a_head_nothing_begins_and_somebody_says_why(make_head, wait_for):
    head = make_head()
    port = head.server.port
    head.server.stop()
    robot = head.worker(port=port)
    away = wait_for(lambda: robot.of(Away), "a word")
    assert "'pick'" in away[-1].why
    assert not robot.client.alive
    head.listen(f"127.0.0.1:{port}")
    wait_for(lambda: robot.poll().client.alive, "a greeting")
    wait_for(lambda: robot.of(Away)[-1].why == "", "that it is there again")


def test_a_new_stream_is_told_what_was_executed(make_head, begin, wait_for):
    head = make_head()
    robot = begin(head.worker())
    for step in range(3):
        robot.ask(step, executed=step if step else None, plan=step == 2)
        wait_for(lambda step=step: len(robot.of(Advice)) == step + 1, "an answer")
    wait_for(lambda: robot.of(Plans), "a plan")
    port = head.server.port
    head.server.stop()
    wait_for(lambda: robot.of(Away) and robot.of(Away)[-1].why, "that it is away")
    robot.ask(3, executed=3.0)
    # Nobody waits for a plan that cannot come.
    wait_for(lambda: [p for p in robot.of(Plans) if p.step == 3 and p.plan is None], "no plan")
    head.policies["arm"].said.clear()
    head.listen(f"127.0.0.1:{port}")
    wait_for(lambda: robot.of(Away)[-1].why == "", "that it is there again")
    robot.ask(4, executed=4.0)
    wait_for(lambda: [p for p in robot.of(Plans) if p.step == 4 and p.plan], "a plan again")
    said = head.policies["arm"].said
    assert said[0] == ("episode", 3)
    assert [s[1] for s in said if s[0] == "executed"] == [1.0, 2.0, 3.0, 4.0]
    assert said[-1] == ("act", 4.0, "explore")


def test_what_was_asked_on_a_stream_that_broke_is_not_waited_for(make_head, begin, wait_for):
    head = make_head()
    head.policies["arm"].mischief = "hang"
    robot = begin(head.worker())
    robot.ask(0)
    wait_for(lambda: head.desks["arm"].busy_s > 0, "a question under way")
    head.server.stop()
    (lost,) = wait_for(lambda: robot.of(Plans), "an answer")
    assert (lost.step, lost.plan) == (0, None)


def test_a_handback_forgets_after_what_was_executed(make_head, begin, wait_for):
    head = make_head()
    robot = begin(head.worker())
    robot.ask(0, plan=False)
    robot.ask(1, executed=1.0, plan=False)
    robot.client.handed_back()
    robot.ask(2, executed=2.0, mode="eval")
    wait_for(lambda: robot.of(Plans), "a plan")
    assert head.policies["arm"].said == [
        ("episode", 3),
        ("executed", 1.0, Segment.AUTO),
        ("handback", 3),
        ("executed", 2.0, Segment.AUTO),
        ("act", 2.0, "eval"),
    ]


def test_a_slow_policy_on_the_robots_own_host_delays_no_judgement(
    tmp_path, processes, begin, wait_for
):
    policy, task = Deep(processes), processes.Reach()
    policy.delay_s = 0.4
    task.judge = lambda *_: Judgement(0.5)
    seat = SeatConfig("arm", tmp_path / "w", "deep", "reach", lambda: policy, lambda: task)
    server = WorkerServer([seat], orphan_after_s=60.0, priority=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    robot = begin(Robot(WorkerClient(Duplex(tmp_path / "w", "connect"))))
    robot.ask(0)
    robot.ask(1, executed=0.0, plan=False)
    wait_for(lambda: len(robot.of(Advice)) == 2, "two answers")
    assert not robot.of(Plans)
    assert robot.client.thinking_s > 0.0
    assert robot.client.silent_s == 0.0
    wait_for(lambda: robot.of(Plans), "the plan")
    assert robot.client.thinking_s == 0.0
    policy.mischief = "raise"
    robot.ask(2, executed=0.0)
    (failure,) = wait_for(lambda: robot.of(Failure), "a failure")
    assert "'deep' could not act" in failure.error
    robot.client.close()
    server.stop()
    thread.join(20.0)
