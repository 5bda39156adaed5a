"""Views: every clause of a manifest, what it lets pass, and what is said of one that is wrong."""

import dataclasses
from datetime import UTC, date, datetime

import numpy as np
import pytest

from user_system.core.draws import Draw
from user_system.core.errors import ConfigError
from user_system.core.types import End, Purpose, Segment
from user_system.replay.sampler import ReplayData
from user_system.replay.views import BUILT_IN, View, with_views

HOUR = 3600 * 10**9
NOON = 1_767_268_800 * 10**9  # 2026-01-01T12:00:00 UTC


def shown(store, **clauses):
    """Observation numbers of the steps that a view shows."""
    views = with_views({"mine": View.parse("mine", clauses)})
    data = ReplayData(store.env, views=views)
    if not data.count("mine"):
        return []
    return data.consume(Draw(data.count("mine"), mix={"mine": 1.0})).observation["flag"].tolist()


def at(fragment, wall_ns):
    return dataclasses.replace(
        fragment, header=dataclasses.replace(fragment.header, wall_ns=wall_ns)
    )


def test_names_purposes_versions_and_segments(store, recorder):
    left, right = recorder("left"), recorder("right")
    left.task, right.run = "push", "run 2"
    store.append(left.run_episode(4, version=3, operator="ann"))  # 1..4
    store.append(right.run_episode(4, version=5, purpose=Purpose.COLLECT))  # 6..9
    store.append(right.run_episode(2, purpose=Purpose.EVAL))  # 11, 12
    for clauses, first in [
        ({"robots": ["left"]}, [1]),
        ({"robots": ["nobody"]}, []),
        ({"tasks": ["push"]}, [1]),
        ({"operators": ["ann"]}, [1]),
        ({"runs": ["run 2", "run 3"]}, [6]),
        ({"purposes": ["COLLECT"]}, [6]),
        ({"purposes": ["EVAL"]}, [11]),
        ({"segments": ["AUTO", "HOLD"], "min_version": 4}, [6]),
        ({"max_version": 3}, [1]),
        ({"min_version": 4, "max_version": 4}, []),
        ({}, [1, 6]),
    ]:
        assert shown(store, **clauses)[::4] == first, clauses


@pytest.mark.parametrize(
    ("said", "ns"),
    [
        (NOON, NOON),
        ("2026-01-01T12:00:00", NOON),
        ("2026-01-01T12:00:00Z", NOON),
        ("2026-01-01T14:00:00+02:00", NOON),
        ("2026-01-01 12:00:00.000001", NOON + 1000),
        ("2026-01-01", NOON - 12 * HOUR),
        (datetime(2026, 1, 1, 12), NOON),
        (datetime(2026, 1, 1, 12, tzinfo=UTC), NOON),
        (date(2026, 1, 1), NOON - 12 * HOUR),
    ],
)
def test_times_are_utc_however_they_are_said(said, ns):
    assert View.parse("v", {"since": said}).since == ns


def test_time_is_of_the_fragment_first_included_last_not(store, recorder):
    fragments = recorder().run_episode(12)
    store.append([at(f, NOON + i * HOUR) for i, f in enumerate(fragments)])
    assert shown(store, since="2026-01-01T13:00:00") == list(range(5, 13))
    assert shown(store, until="2026-01-01T13:00:00") == [1, 2, 3, 4]
    assert shown(store, since=NOON + 1, until=NOON + 2 * HOUR) == [5, 6, 7, 8]


def test_success_known_and_unknown(store, recorder):
    robot = recorder()
    for success in (True, False, None):
        store.append(robot.run_episode(1))
        if success is not None:
            store.label(f"arm-1-{robot.episodes}", "success", "v", success, None)
    for value, numbers in [
        (True, [1]),
        (False, [3]),
        ("known", [1, 3]),
        ("unknown", [5]),
        ("not_failed", [1, 5]),
    ]:
        assert shown(store, success=value) == numbers, value


def test_an_episode_is_intervened_from_its_first_step_on_once_somebody_stepped_in(store, recorder):
    helped, clean = recorder("h"), recorder("c")
    views = {n: View.parse(n, {"intervened": n == "yes"}) for n in ("yes", "no")}
    data = ReplayData(store.env, views=with_views(views))
    helped.step(3)  # 1..3
    store.append([helped.flush(), *clean.run_episode(4)])  # 4..7, 8
    assert (data.count("yes"), data.count("no")) == (0, 2 + 4)
    helped.step(2, segment=Segment.RECOVERY)  # 9, 10
    store.append([helped.flush()])
    assert (data.count("yes"), data.count("no")) == (4, 4)
    helped.step(1, end=End.TERMINATED)
    store.append([helped.flush()])
    assert (data.count("yes"), data.count("no")) == (6, 4)
    helped.begin()
    helped.step(2)
    store.append([helped.flush()])
    assert (data.count("yes"), data.count("no")) == (6, 5)


def test_lead_leaves_out_own_steps_before_interventions_only(store, recorder):
    robot = recorder()
    robot.step(3)  # 1..3
    robot.step(2, segment=Segment.DEMO)  # 4, 5
    robot.step(3)  # 6..8
    robot.step(1, segment=Segment.HOLD)  # 9
    robot.step(2, segment=Segment.RECOVERY)  # 10, 11
    robot.step(1, segment=Segment.CORRECTION)  # 12
    robot.step(3)  # 13..15
    robot.step(1, segment=Segment.CORRECTION)  # 16
    robot.step(4, end=End.NONE)  # 17..20
    robot.step(1, end=End.TERMINATED)  # 21
    store.append([robot.flush()])
    own = {"segments": ["AUTO"]}
    assert shown(store, **own, lead=2) == [1, 2, 3, 6, 13, *range(17, 22)]
    assert shown(store, **own, lead=4) == [1, 2, *range(17, 22)]
    assert shown(store, lead=4) == [1, 2, 4, 5, 10, 11, 12, *range(16, 22)]
    assert shown(store, **own, lead=0) == [1, 2, 3, 6, 7, 8, 13, 14, 15, *range(17, 22)]


def test_steps_that_were_undone_count_towards_the_lead(store, recorder):
    robot = recorder()
    robot.step(8)  # 1..8
    store.append([robot.flush()])
    robot.void_from = 4
    robot.step(1, segment=Segment.REWIND)
    robot.step(1, segment=Segment.RECOVERY)
    robot.step(1, end=End.TERMINATED)
    store.append([robot.flush()])
    assert shown(store, segments=["AUTO"], lead=6) == [1, 2, 11]


def test_any_shows_what_one_of_its_views_shows(store, recorder):
    a, b = recorder("a"), recorder("b")
    store.append(a.run_episode(3, segment=Segment.DEMO))  # 1..3
    store.append(b.run_episode(3))  # 5..7
    store.append(a.run_episode(3, version=4))  # 9..11
    either = [{"segments": ["DEMO"]}, {"robots": ["a"], "min_version": 4}]
    assert shown(store, any=either) == [1, 2, 3, 9, 10, 11]


def test_every_clause_can_be_said_and_every_view_is_small():
    known = {f.name for f in dataclasses.fields(View)}
    said = {
        "segments": ["AUTO"],
        "purposes": ["TRAIN"],
        "robots": ["a"],
        "tasks": ["a"],
        "operators": ["a"],
        "runs": ["a"],
        "success": True,
        "min_version": 1,
        "max_version": 2,
        "since": 1,
        "until": 2,
        "intervened": True,
        "lead": 3,
        "any": [{}],
    }
    assert said.keys() == known
    for key, value in said.items():
        View.parse("v", {key: value})


@pytest.mark.parametrize(
    ("clauses", "match"),
    [
        ({"segmens": ["AUTO"]}, "Did you mean 'segments'"),
        ({"segments": ["AUT0"]}, "some of .*Did you mean 'AUTO'"),
        ({"segments": [["AUTO"]]}, "some of"),
        ({"segments": "AUTO"}, "some of"),
        ({"robots": "left"}, "a list of names"),
        ({"success": "yes"}, "true or false, known, unknown"),
        ({"success": "unknwon"}, "Did you mean 'unknown'"),
        ({"success": 1}, "true or false"),
        ({"min_version": 1.5}, "a whole number"),
        ({"since": "yesterday"}, "UTC as 2026"),
        ({"since": 1.5}, "UTC as 2026"),
        ({"since": 5, "until": 5}, "ends before it begins"),
        ({"intervened": "no"}, "true or false"),
        ({"lead": -1}, "0 or more"),
        ({"lead": True}, "0 or more"),
        ({"any": []}, "a list of 1..16 views"),
        ({"any": [{"robots": "x"}]}, "any.*0.*robots.*a list of names"),
        ({"any": [{}], "robots": ["a"]}, "`any` alone"),
        ({"any": [{"any": [{}]}]}, "without `any` of their own"),
        (["AUTO"], "allowed: clauses"),
    ],
)
def test_a_wrong_clause_is_named(clauses, match):
    with pytest.raises(ConfigError, match=match):
        View.parse("mine", clauses)


def test_no_view_hides_a_built_in_one():
    with pytest.raises(ConfigError, match="view is built in; got rac"):
        with_views({"rac": View()})
    assert set(with_views({"mine": View()})) == {*BUILT_IN, "mine"}


# --- several runs, several schemas ---


def test_runs_of_one_store_are_mixed_at_a_fixed_ratio(store, recorder):
    old, new = recorder("old"), recorder("new")
    old.run, new.run = "monday", "tuesday"
    store.append(old.run_episode(50))
    views = {
        "before": View.parse("before", {"runs": ["monday"]}),
        "now": View.parse("now", {"runs": ["tuesday"]}),
    }
    data = ReplayData(store.env, seed=1, views=with_views(views))
    for length in (2, 4, 30):
        store.append(new.run_episode(length))
        batch = data.draw(Draw(64, mix={"now": 0.5, "before": 0.5}, columns=["run"]))
        names = np.array(data.names())[batch.extras["run"]]
        assert (names[:32] == "tuesday").all()
        assert (names[32:] == "monday").all()


def test_a_schema_is_chosen_by_its_id(store, recorder):
    store.append(recorder("a", schema="s1").run_episode(3))
    store.append(recorder("b", schema="s2", cameras={"cam": (4, 4, 3)}).run_episode(4))
    assert "cam" not in ReplayData(store.env, schema="s1").draw(Draw(2)).observation
    assert "cam" in ReplayData(store.env, schema="s2").draw(Draw(2)).observation
