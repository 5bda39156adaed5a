import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_system.core.errors import ConfigError
from user_system.core.schedule import (
    Assignment,
    EpisodeResult,
    Phase,
    Schedule,
    ScheduleConfig,
)
from user_system.core.types import End, Purpose, Segment

CONFIG = ScheduleConfig(
    run="r", task="t", demos=3, eval_episodes=4, eval_pass=3, eval_every=10,
    ready_window=4, ready_rate=0.75, final_episodes=5,
)  # fmt: skip


def done(
    a: Assignment,
    success: bool = True,
    *,
    end: End = End.TERMINATED,
    version: int | None = None,
    segments: dict[int, int] | None = None,
    takeovers: int = 0,
) -> EpisodeResult:
    segment = Segment.DEMO if a.purpose is Purpose.COLLECT else Segment.AUTO
    segments = segments or {int(segment): 10}
    return EpisodeResult(
        robot=a.robot,
        episode=a.episode,
        purpose=a.purpose,
        success=success,
        end=end,
        steps=sum(segments.values()),
        segments=segments,
        takeovers=takeovers,
        version=a.version if version is None else version,
        seed=a.seed,
    )


def step(s: Schedule, success: bool = True, robot: str = "a", version: int = 0, **kw) -> Assignment:
    a = s.next(robot, version)
    assert a is not None
    assert s.report(done(a, success, **kw))
    return a


def through(s: Schedule, phase: Phase) -> None:
    """Bring a schedule to the beginning of a phase."""
    while s.phase is Phase.BASELINE and phase is not Phase.BASELINE:
        step(s, success=False)
    while s.phase is Phase.COLLECT and phase is not Phase.COLLECT:
        step(s)
    while s.phase is Phase.TRAIN and phase is not Phase.TRAIN:
        step(s, version=7)
    assert s.phase is phase


def test_a_run_goes_through_all_phases() -> None:
    s = Schedule(CONFIG)
    through(s, Phase.FROZEN)
    assert s.evaluations[0].version == 0
    assert s.evaluations[0].rate == 0.0
    assert s.freeze is not None
    assert s.freeze.version == 7
    assert s.freeze.env_steps == s.env_steps == 3 * 10 + 4 * 10  # three demos, four episodes
    seeds = {step(s, success=k != 0, version=9).seed for k in range(5)}
    assert len(seeds) == 5
    assert s.phase is Phase.DONE
    assert s.final is not None
    assert (s.final.version, s.final.episodes, s.final.successes) == (7, 5, 4)
    assert s.next("a", 9) is None


def test_asking_again_gives_the_same_assignment() -> None:
    s = Schedule(CONFIG)
    first = s.next("a")
    assert s.next("a") == first
    other = s.next("b")
    assert other is not None
    assert first is not None
    assert other.seed != first.seed


def test_a_report_counts_once() -> None:
    s = Schedule(CONFIG)
    through(s, Phase.TRAIN)
    a = s.next("a", 1)
    assert a is not None
    before = s.env_steps
    assert s.report(done(a))
    assert not s.report(done(a))
    assert s.env_steps == before + 10


def test_only_steps_towards_the_goal_count() -> None:
    s = Schedule(CONFIG)
    through(s, Phase.TRAIN)
    before = s.env_steps
    segments = {int(x): 1 for x in Segment}
    step(s, segments=segments)
    assert s.env_steps == before + 4  # DEMO, AUTO, RECOVERY, CORRECTION


def test_failed_demonstrations_are_repeated() -> None:
    s = Schedule(CONFIG)
    through(s, Phase.COLLECT)
    step(s, success=False)
    for _ in range(2):
        step(s)
    assert s.phase is Phase.COLLECT
    step(s)
    assert s.phase is Phase.TRAIN


def test_no_more_demonstrations_are_under_way_than_wanted() -> None:
    s = Schedule(CONFIG)
    through(s, Phase.COLLECT)
    given = [s.next(robot) for robot in "abcd"]
    assert [a is not None for a in given] == [True, True, True, False]


@pytest.mark.parametrize("help_in_one", [False, True])
def test_a_set_is_due_when_training_succeeds_unaided(help_in_one: bool) -> None:
    s = Schedule(replace(CONFIG, ready_rate=1.0))
    through(s, Phase.TRAIN)
    for k in range(4):
        assert step(s, version=1, takeovers=int(help_in_one and k == 2)).purpose is Purpose.TRAIN
    a = s.next("a", 5)
    assert a is not None
    assert a.purpose is (Purpose.TRAIN if help_in_one else Purpose.EVAL)
    assert a.version == (0 if help_in_one else 5)


def test_a_set_stays_with_its_version_and_others_train_on() -> None:
    s = Schedule(CONFIG)
    through(s, Phase.TRAIN)
    for _ in range(4):
        step(s, version=1)
    given = [s.next(robot, 5 + k) for k, robot in enumerate("abcde")]
    assert [a.purpose for a in given if a] == [Purpose.EVAL] * 4 + [Purpose.TRAIN]
    assert {a.version for a in given[:4] if a} == {5}


def test_a_hopeless_set_ends_early_and_its_stragglers_change_nothing() -> None:
    s = Schedule(CONFIG)
    through(s, Phase.TRAIN)
    for _ in range(4):
        step(s, version=1)
    a, b, c = (s.next(robot, 5) for robot in "abc")
    assert a
    assert b
    assert c
    s.report(done(a, success=False))
    s.report(done(b, success=False), now_s=3.0)
    last = s.evaluations[-1]
    assert (last.version, last.episodes, last.successes, last.wall_s) == (5, 2, 0, 3.0)
    s.report(done(c, success=False))
    assert s.evaluations[-1] == last
    following = s.next("a", 5)
    assert following is not None
    assert following.purpose is Purpose.TRAIN  # eval_every has not passed


def test_the_same_version_is_not_evaluated_twice() -> None:
    s = Schedule(replace(CONFIG, eval_every=0))
    through(s, Phase.TRAIN)
    for _ in range(4):
        step(s, version=5)
    while s.next("a", 5).purpose is Purpose.EVAL:  # type: ignore[union-attr]
        step(s, success=False, version=5)
    assert step(s, version=5).purpose is Purpose.TRAIN
    for _ in range(4):
        step(s, version=5)
    assert s.next("b", 6).purpose is Purpose.EVAL  # type: ignore[union-attr]


@pytest.mark.parametrize("spoil", [{"end": End.FAULT}, {"end": End.ABORT}, {"version": 3}], ids=str)
def test_a_spoiled_evaluation_episode_is_repeated(spoil: dict) -> None:
    s = Schedule(CONFIG)
    a = s.next("a")
    assert a is not None
    s.report(done(a, success=False, **spoil))
    again = s.next("a")
    assert again is not None
    assert again.seed == a.seed
    assert again.episode != a.episode


def test_a_lost_robot_does_not_hold_up_a_set() -> None:
    s = Schedule(replace(CONFIG, eval_episodes=1, eval_pass=1))
    gone = s.next("gone")
    assert gone is not None
    assert s.next("a") is None
    s.lost("gone")
    assert step(s, success=False).seed == gone.seed
    assert s.phase is Phase.COLLECT
    assert not s.report(done(gone))


def test_steps_of_an_episode_taken_back_count_once_however_late_it_reports() -> None:
    """They are in the replay buffer and learned from, whether or not its report ever comes."""
    s = Schedule(CONFIG)
    through(s, Phase.TRAIN)
    first = s.next("a")
    assert first is not None
    before = s.env_steps
    s.lost("a", (first.episode, 4))
    assert s.env_steps == before + 4
    assert s.next("a") != first
    state = json.loads(json.dumps(s.state_dict()))
    s = Schedule(CONFIG)
    s.load_state_dict(state)
    late = done(first)
    assert not s.report(replace(late, robot="b")), "another robot's word"
    assert s.report(late)
    assert s.env_steps == before + 10
    assert not s.report(late)
    assert s.env_steps == before + 10


def test_a_lost_evaluation_costs_no_env_steps() -> None:
    s = Schedule(CONFIG)
    first = s.next("a")
    assert first is not None
    s.lost("a", (first.episode, 4))
    assert not s.report(done(first))
    assert s.env_steps == 0


def test_progress_of_another_episode_is_not_counted() -> None:
    s = Schedule(CONFIG)
    through(s, Phase.TRAIN)
    before = s.env_steps
    assert s.next("a") is not None
    s.lost("a", ("another", 40))
    assert s.env_steps == before


def test_a_run_that_never_freezes_gives_up() -> None:
    s = Schedule(replace(CONFIG, give_up_steps=100))
    through(s, Phase.TRAIN)
    while s.phase is Phase.TRAIN:
        step(s, success=False, version=1)
    assert s.phase is Phase.DONE
    assert s.freeze is None
    assert s.env_steps == 100


def test_no_set_before_its_time() -> None:
    s = Schedule(replace(CONFIG, eval_after=90))
    through(s, Phase.TRAIN)
    purposes = [step(s, version=1).purpose for _ in range(7)]
    assert purposes == [Purpose.TRAIN] * 6 + [Purpose.EVAL]


def test_latest_forces_a_set() -> None:
    s = Schedule(replace(CONFIG, eval_latest=80))  # the demonstrations took 30
    through(s, Phase.TRAIN)
    purposes = []
    while not purposes or purposes[-1] is Purpose.TRAIN:
        purposes.append(step(s, success=False, version=1).purpose)
    assert len(purposes) == 6


@pytest.mark.parametrize("bad", [{"eval_pass": 5}, {"eval_pass": 0}, {"ready_window": 0}])
def test_an_impossible_rule_is_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        replace(CONFIG, **bad)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_order_of_events_breaks_the_rule(data: st.DataObject) -> None:
    """Robots ask, finish, break, vanish, and the hub restarts: the run ends, and by the rule."""
    s = Schedule(replace(CONFIG, give_up_steps=600))
    open_: dict[str, Assignment] = {}
    evals: dict[int, set[int]] = {}
    steps, version = 0, 0
    for _ in range(400):
        if s.phase is Phase.DONE:
            break
        robot = data.draw(st.sampled_from("abc"))
        what = data.draw(st.sampled_from(["go", "go", "go", "go", "broken", "vanish", "restart"]))
        if what == "restart":
            state = json.loads(json.dumps(s.state_dict()))
            s = Schedule(s.config)
            s.load_state_dict(state)
        elif what == "vanish":
            s.lost(robot)
            open_.pop(robot, None)
        elif robot not in open_:
            a = s.next(robot, version)
            if a is not None:
                assert s.next(robot, version + 1) == a
                open_[robot] = a
        else:
            a = open_.pop(robot)
            end = End.FAULT if what == "broken" else End.TERMINATED
            assert s.report(done(a, data.draw(st.booleans()), end=end))
            steps += 10 * (a.purpose is not Purpose.EVAL)
            if a.purpose is Purpose.EVAL and what == "go":
                assert a.seed not in evals.setdefault(a.version, set())  # no start judged twice
                evals[a.version].add(a.seed)
            version += s.phase is Phase.TRAIN
        assert s.env_steps == steps
    if s.freeze is not None:
        assert s.freeze.successes >= s.config.eval_pass
        assert s.freeze.episodes == s.config.eval_episodes
    if s.final is not None:
        assert s.final.episodes == s.config.final_episodes
        assert s.freeze is not None
        assert s.final.version == s.freeze.version


def test_training_waits_for_learning_that_is_behind():
    s = Schedule(replace(CONFIG, eval_episodes=1, eval_pass=1, demos=1, max_behind_steps=50))
    for _ in range(2):  # the baseline and a demonstration wait for nobody
        assert s.report(done(s.next("arm-1", behind=900)))
    assert s.phase is Phase.TRAIN
    assert s.next("arm-1", behind=51) is None
    given_out = s.next("arm-1", behind=50)
    assert given_out is not None
    assert s.next("arm-1", behind=900) == given_out  # what was handed out stays handed out


def test_training_never_waits_unless_told_to():
    s = Schedule(replace(CONFIG, eval_episodes=1, eval_pass=1, demos=1))
    for _ in range(3):
        assert s.report(done(s.next("arm-1", behind=1e9)))
    assert s.phase is Phase.TRAIN
