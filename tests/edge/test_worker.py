import threading
from dataclasses import replace

import numpy as np
import pytest

from user_system.codec import weights as codec
from user_system.core.errors import PluginError
from user_system.core.interfaces import Judgement, ResetPlan
from user_system.core.ports import Manifest, TensorEntry
from user_system.core.types import Plan, Purpose, Segment
from user_system.edge import weight_files
from user_system.edge.messages import Assignment
from user_system.edge.mind import checked_plan
from user_system.edge.rings import Duplex
from user_system.edge.worker import SeatConfig, WorkerServer
from user_system.edge.worker_client import Advice, Failure, Loaded, WorkerClient

EPISODE = Assignment("arm", Purpose.TRAIN, "reach", 3, "e1")


class Table:
    """A worker in a thread and one client."""

    def __init__(self, directory, policy, task):
        seat = SeatConfig("arm", directory / "w", "seeker", "reach", lambda: policy, lambda: task)
        self.server = WorkerServer([seat], orphan_after_s=60.0, priority=0)
        self.client = WorkerClient(Duplex(directory / "w", "connect"))
        self.policy, self.task = policy, task
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    def news(self, wait_for):
        box = []

        def some():
            box.extend(self.client.poll())
            return box

        wait_for(some, "news of the worker")
        return box

    def ask(self, step, position, executed=None, plan=True):
        observation = {
            "position": np.full(2, position, np.float32),
            "goal": np.zeros(2, np.float32),
        }
        self.client.step(step, observation, executed, Segment.AUTO, step, mode="explore", plan=plan)


@pytest.fixture
def table(tmp_path, processes, wait_for):
    made = Table(tmp_path, processes.Seeker(tmp_path / "mischief"), processes.Reach())
    wait_for(lambda: made.client.poll() or made.client.alive, "a greeting")
    yield made
    made.server.stop()
    made.thread.join(20.0)
    made.client.close()


def test_an_episode(table, wait_for):
    assert table.client.spec == table.policy.spec
    table.client.begin(EPISODE)
    assert table.news(wait_for) == [ResetPlan(((0.0, 0.0),), {}, speed=0.9)]
    table.ask(0, 0.1)
    (first,) = table.news(wait_for)
    assert first.judgement is None
    assert np.allclose(first.plan.actions, -0.05)
    assert first.plan.extras["gain"].shape == (1,)
    table.ask(1, 0.0, np.zeros(2, np.float32), plan=False)
    (second,) = table.news(wait_for)
    assert second == Advice(1, Judgement(1.0, True, False, True), None)
    assert table.client.silent_s == 0.0


def test_questions_that_newer_ones_overtook_are_judged_but_not_planned(table, wait_for):
    table.client.begin(EPISODE)
    table.news(wait_for)
    release = threading.Event()
    judge = table.task.judge

    def slow(*arguments):
        release.wait(30.0)
        return judge(*arguments)

    table.task.judge = slow
    table.ask(0, 0.3, plan=False)
    table.news(wait_for)
    for step in range(1, 4):
        table.ask(step, 0.3, np.zeros(2, np.float32))
    release.set()
    got = []
    while len(got) < 3:
        got += table.news(wait_for)
    assert [a.step for a in got] == [1, 2, 3]
    assert [a.plan is None for a in got] == [True, True, False]
    assert all(a.judgement.reward == 0.0 for a in got)


def test_a_step_whose_question_was_lost_is_not_judged_by_its_neighbour(table, wait_for):
    table.client.begin(EPISODE)
    table.news(wait_for)
    got = []
    for step in (0, 1, 3, 4):  # the ring was full at 2
        table.ask(step, 0.3, np.zeros(2, np.float32) if step else None, plan=False)
        got += table.news(wait_for)
    assert [a.step for a in got] == [0, 1, 3, 4]
    assert [a.judgement is not None for a in got] == [False, True, False, True]


@pytest.mark.parametrize(
    ("method", "value", "text"),
    [
        ("act", None, "'seeker' answered no plan"),
        ("act", Plan(np.zeros((2, 2), np.float32)), "'seeker' answered no plan"),
        ("act", Plan(np.full((1, 2), np.nan, np.float32)), "'seeker' acted nonsense"),
        ("act", Plan(np.zeros((1, 2), np.float32)), "'seeker' gave another extra 'gain'"),
        ("act", ZeroDivisionError("oops"), "'seeker' could not act; got ZeroDivisionError: oops"),
    ],
)
def test_a_bad_policy_is_named(table, wait_for, method, value, text):
    def bad(*_, **__):
        if isinstance(value, Exception):
            raise value
        return value

    setattr(table.policy, method, bad)
    table.client.begin(EPISODE)
    table.news(wait_for)
    table.ask(0, 0.0)
    (failure,) = table.news(wait_for)
    assert isinstance(failure, Failure)
    assert text in failure.error
    # It serves on.
    table.client.begin(replace(EPISODE, episode="e2"))
    assert isinstance(table.news(wait_for)[0], ResetPlan)


@pytest.mark.parametrize("judgement", [None, Judgement(float("inf"))])
def test_a_bad_task_is_named(table, wait_for, judgement):
    table.task.judge = lambda *_: judgement
    table.client.begin(EPISODE)
    table.news(wait_for)
    table.ask(0, 0.0)
    table.news(wait_for)
    table.ask(1, 0.0, np.zeros(2, np.float32))
    (failure,) = table.news(wait_for)
    assert "'reach' judged nonsense" in failure.error


def test_weights_are_loaded_from_their_file(table, wait_for, tmp_path):
    folder = weight_files.Folder(tmp_path)

    def lay_down(version, modules):
        rows = codec.entries(modules)
        entries = tuple(TensorEntry(*row) for row in rows)
        manifest = Manifest("p", version, codec.entries_hash(rows), entries)
        fresh = {row.hash: modules[row.module][row.name].tobytes() for row in rows}
        return str(folder.lay(manifest, fresh, {}, None).path)

    table.client.load(4, lay_down(4, {"policy": {"gain": np.array(0.5, np.float32)}}))
    assert table.news(wait_for) == [Loaded(4, "")]
    table.client.load(5, lay_down(5, {"other": {"gain": np.array(0.5, np.float32)}}))
    (refused,) = table.news(wait_for)
    assert refused.version == 5
    assert "could not load version 5" in refused.error
    table.client.begin(EPISODE)
    table.news(wait_for)
    table.ask(0, 0.02)
    (advice,) = table.news(wait_for)
    assert advice.plan.version == 4
    assert np.allclose(advice.plan.actions, -0.01)


def test_no_plan_waits_for_a_disk(table, wait_for, tmp_path, monkeypatch):
    """Weights are read aside, however long that takes, and taken over between two plans."""
    go_on = threading.Event()
    read = weight_files.load

    def slow(path):
        go_on.wait(20)
        return read(path)

    monkeypatch.setattr(weight_files, "load", slow)
    table.client.load(4, str(tmp_path / "none"))
    table.client.begin(EPISODE)
    table.news(wait_for)
    for step in range(3):
        table.ask(step, 0.02)
        (advice,) = table.news(wait_for)
        assert advice.plan is not None
    go_on.set()
    (loaded,) = table.news(wait_for)
    assert (type(loaded), loaded.version) == (Loaded, 4)


def test_weights_that_cannot_be_read_are_refused(table, wait_for, tmp_path):
    (tmp_path / "7").write_bytes(b"no weights")
    table.client.load(7, str(tmp_path / "7"))
    (refused,) = table.news(wait_for)
    assert isinstance(refused, Loaded)
    assert "7" in refused.error
    assert table.thread.is_alive()


def test_a_plugin_that_cannot_be_built_ends_the_worker(tmp_path):
    def broken():
        raise ImportError("no module named torch")

    seat = SeatConfig("arm", tmp_path / "w", "seeker", "reach", broken, broken)
    with pytest.raises(PluginError, match=r"'seeker' could not be built.*torch"):
        WorkerServer([seat]).run()


def test_history_is_stacked_oldest_first(tmp_path, processes, wait_for):
    seeker = processes.Seeker(tmp_path / "mischief")
    seeker.spec = replace(seeker.spec, history=3)
    seen = []

    def act(observation, **_):
        seen.append(observation["position"][:, 0].tolist())
        return Plan(np.zeros((1, 2), np.float32), extras={"gain": np.float32(1)})

    seeker.act = act
    table = Table(tmp_path, seeker, processes.Reach())
    wait_for(lambda: table.client.poll() or table.client.alive, "a greeting")
    table.client.begin(EPISODE)
    table.news(wait_for)
    for step, position in enumerate((1, 2, 3, 4)):
        table.ask(step, position)
        table.news(wait_for)
    assert seen == [[1, 1, 1], [1, 1, 2], [1, 2, 3], [2, 3, 4]]
    table.server.stop()
    table.thread.join(20.0)
    table.client.close()


def test_plans_of_the_declared_shape_pass(processes, tmp_path):
    spec = replace(processes.Seeker(tmp_path / "m").spec, horizon=3)
    plan = Plan(np.zeros((3, 2)), 2, extras={"gain": np.arange(3.0)})
    checked = checked_plan(plan, spec, "p")
    assert checked.actions.dtype == np.float32
    assert checked.extras["gain"].tolist() == [0.0, 1.0, 2.0]
