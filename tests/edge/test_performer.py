"""What a session decided is carried out, in order, and each by whose business it is."""

from types import SimpleNamespace

import pytest

from user_system.core.modes import Mode
from user_system.core.types import End, Purpose
from user_system.edge import effects as do
from user_system.edge.adder import Totals
from user_system.edge.messages import Assignment
from user_system.edge.performer import Performer

TASK = Assignment("arm", Purpose.TRAIN, "pick", 4, "episode-1", version=9)
TOTALS = Totals(steps=12, human_steps=3, reward=1.0, version=0, segments={0: 12})


class Noted:
    """Stands for a part of a station: notes what is asked of it, all in one list."""

    def __init__(self, name, calls, **answers):
        self._name, self._calls, self._answers = name, calls, answers

    def __getattr__(self, name):
        def call(*arguments):
            self._calls.append((f"{self._name}.{name}", *arguments))
            return self._answers.get(name)

        return call


class Bench:
    def __init__(self, *, refused="", recording=True):
        self.calls = calls = []
        self.session = SimpleNamespace(
            name="arm",
            effects=[],
            scene_as=lambda number: calls.append(("session.scene_as", number)),
            released_as=lambda number: calls.append(("session.released_as", number)),
            store_failed=lambda why: calls.append(("session.store_failed", why)),
        )
        self.recorder = Noted("recorder", calls, finish=(TOTALS, refused))
        self.recorder.recording, self.recorder.step, self.recorder.totals = recording, 5, TOTALS
        self.arbiter = SimpleNamespace(mode=Mode.AUTO, rewound_to=None)
        self.weights = SimpleNamespace(version=8, knows=lambda version: version != 9)
        self.advisor = Noted("advisor", calls)
        self.advisor.chunks = Noted("chunks", calls)
        self.performer = Performer(
            session=self.session,
            driver=Noted("driver", calls, scene=2, release=3),
            worker=Noted("worker", calls),
            advisor=self.advisor,
            weights=self.weights,
            arbiter=self.arbiter,
            recorder=self.recorder,
            outside=Noted("outside", calls),
        )

    def perform(self, *effects):
        self.session.effects.extend(effects)
        self.performer.perform(None)
        return [call[0] for call in self.calls]

    def reports(self):
        return [call[1] for call in self.calls if call[0] == "outside.report"]


def finish(end=End.TERMINATED, success=True):
    return do.Finish(TASK, end, success, None, None, 1)


def test_all_is_carried_out_in_order_what_comes_meanwhile_too():
    bench = Bench()
    bench.session.scene_as = lambda number: bench.session.effects.append(do.Want())
    names = bench.perform(do.Scene(4, {"x": 0.1}), do.Stop("hot"), do.Pace(8.0))
    assert names == ["driver.scene", "driver.stop", "driver.pace", "outside.want"]
    assert bench.session.effects == []


def test_the_session_hears_the_numbers_of_what_it_asked_for():
    bench = Bench()
    bench.perform(do.Scene(4, {}), do.Release())
    assert ("session.scene_as", 2) in bench.calls
    assert ("session.released_as", 3) in bench.calls


def test_an_episode_whose_weights_are_not_here_asks_for_them():
    bench = Bench()
    names = bench.perform(do.Begin(TASK))
    assert names == ["advisor.begin", "worker.begin", "outside.need"]
    known = Bench()
    known.weights.knows = lambda version: True
    assert known.perform(do.Begin(TASK)) == ["advisor.begin", "worker.begin"]


def test_a_hand_back_drops_what_was_planned_before_the_policy_hears_of_it():
    bench = Bench()
    assert bench.perform(do.Replan()) == ["chunks.flush", "worker.handed_back"]
    assert bench.calls[0] == ("chunks.flush", 5)


def test_an_end_flushes_before_it_is_reported():
    bench = Bench()
    names = bench.perform(do.Begin(TASK), finish())
    assert names[-3:] == ["recorder.finish", "worker.forget", "outside.report"]
    (report,) = bench.reports()
    assert (report.episode, report.end, report.success) == ("episode-1", End.TERMINATED, True)
    assert (report.steps, report.human_steps, report.takeovers) == (12, 3, 1)
    assert report.version == 8, "no step said which acted: the one that acts now"


def test_a_disk_that_refused_is_told_to_the_session():
    bench = Bench(refused="disk is full")
    bench.perform(do.Begin(TASK), finish())
    assert ("session.store_failed", "disk is full") in bench.calls


@pytest.mark.parametrize(
    ("mode", "to", "recording", "voided"),
    [
        (Mode.REWIND, 7, True, [7]),
        (Mode.REWIND, None, True, []),
        (Mode.AUTO, 7, True, []),
        (Mode.REWIND, 7, False, []),
    ],
)
def test_what_a_rewind_undid_is_void_before_the_episode_ends(mode, to, recording, voided):
    bench = Bench(recording=recording)
    bench.arbiter.mode, bench.arbiter.rewound_to = mode, to
    names = bench.perform(do.Begin(TASK), finish())
    assert [call[1] for call in bench.calls if call[0] == "recorder.void"] == voided
    if voided:
        assert names.index("recorder.void") < names.index("recorder.finish")


def test_a_loop_that_failed_reports_the_episode_it_had_begun_and_no_other():
    bench = Bench()
    bench.performer.abandon()
    assert bench.reports() == []
    bench.perform(do.Begin(TASK))
    bench.performer.abandon()
    (report,) = bench.reports()
    assert (report.episode, report.end, report.success) == ("episode-1", End.ABORT, None)
    bench.performer.abandon()
    assert len(bench.reports()) == 1, "once"
