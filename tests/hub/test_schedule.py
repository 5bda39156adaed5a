"""The schedule's memory: whenever the hub dies, the run goes on where it was."""

import json

from user_system.core.schedule import EpisodeResult, Phase, ScheduleConfig
from user_system.core.types import End, Purpose, Segment
from user_system.hub.schedule import Book, read_journal

CONFIG = ScheduleConfig(
    run="r", demos=2, eval_episodes=2, eval_pass=2, eval_every=0, ready_window=2, final_episodes=2
)


def book(tmp_path, clock):
    opened = Book(tmp_path, CONFIG, clock)
    opened.open()
    return opened


def result_of(assignment, success=True, end=End.TERMINATED):
    segment = Segment.DEMO if assignment.purpose is Purpose.COLLECT else Segment.AUTO
    return EpisodeResult(
        robot=assignment.robot,
        episode=assignment.episode,
        purpose=assignment.purpose,
        success=success,
        end=end,
        steps=10,
        segments={int(segment): 10},
        version=assignment.version,
    )


def test_a_run_that_dies_after_every_decision_is_the_run_that_never_died(tmp_path, clock):
    def go(directory, dying):
        current = book(directory, clock)
        decisions = []
        for _ in range(40):
            assignment = current.next("arm-1", 3)
            if assignment is None:
                break
            decisions.append((assignment.episode, assignment.seed, assignment.purpose))
            if dying:
                current = book(directory, clock)
                assert current.next("arm-1", 3) == assignment
            current.report(result_of(assignment))
            if dying:
                current = book(directory, clock)
                assert current.report(result_of(assignment)) is False  # heard it already
        assert current.phase is Phase.DONE
        return decisions, current.env_steps

    assert go(tmp_path / "calm", False) == go(tmp_path / "stormy", True)


def test_a_new_life_of_an_agent_gets_a_new_episode_and_an_old_one_goes_on(tmp_path, clock):
    current = book(tmp_path, clock)
    assert current.born("arm-1", "boot-a") is True
    first = current.next("arm-1", 0)
    current = book(tmp_path, clock)
    assert current.born("arm-1", "boot-a") is False
    assert current.next("arm-1", 0) == first
    assert current.born("arm-1", "boot-b") is True
    second = current.next("arm-1", 0)
    assert second.episode != first.episode
    assert second.seed == first.seed  # the start of the evaluation episode is wanted again


def test_the_run_clock_goes_on_over_a_restart(tmp_path, clock):
    current = book(tmp_path, clock)
    clock.pass_s(5)
    current.next("arm-1", 0)
    again = book(tmp_path, clock)
    clock.pass_s(2)
    assert again.elapsed_s == 7


def test_the_journal_survives_a_torn_line(tmp_path, clock):
    current = book(tmp_path, clock)
    for _ in range(3):
        current.report(result_of(current.next("arm-1", 0)))
    path = tmp_path / "episodes.jsonl"
    path.write_text(path.read_text() + '{"episode": "r-0')
    again = book(tmp_path, clock)
    again.report(result_of(again.next("arm-1", 0)))
    assert [e["episode"] for e in read_journal(path)] == [f"r-{i:06d}" for i in range(4)]
    assert len(again.curve()) == 4


def test_evaluated_versions_are_pinned(tmp_path, clock):
    current = book(tmp_path, clock)
    while current.phase is not Phase.FROZEN:
        current.report(result_of(current.next("arm-1", 5)))
    assert 5 in current.pinned
    assert current.stats()["freeze_version"] == 5


def test_busy_names_robots_with_unreported_work(tmp_path, clock):
    current = book(tmp_path, clock)
    assignment = current.next("arm-1", 0)
    assert book(tmp_path, clock).busy == {"arm-1"}
    current.report(result_of(assignment))
    assert current.busy == frozenset()


def test_state_on_disk_is_plain_json(tmp_path, clock):
    current = book(tmp_path, clock)
    current.next("arm-1", 0)
    state = json.loads((tmp_path / "schedule.json").read_text())
    assert state["schedule"]["phase"] == "baseline"
