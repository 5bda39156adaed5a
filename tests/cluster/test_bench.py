"""Figures, references and outcomes of benchmarks; nothing here starts the system."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest

from user_system.cluster import bench
from user_system.cluster.bench import demo_run, figures, kills, loop, pacing, period
from user_system.cluster.bench.figures import Figure, Goal, Result, judged
from user_system.cluster.status import RobotView, View
from user_system.core.errors import ConfigError, LinkError

MS = 1_000_000


@pytest.mark.parametrize(
    ("sense", "value", "met"),
    [("<=", 2.0, True), ("<=", 2.1, False), (">=", 2.0, True), (">=", 1.9, False), ("==", 2, True)],
)
def test_goals(sense, value, met):
    assert Goal(sense, 2.0).met(value) is met


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("sense", ["<=", ">=", "=="])
def test_what_was_not_measured_reaches_no_goal(sense, value):
    assert not Goal(sense, 0.0).met(value)


def test_a_result_is_what_the_command_line_promises():
    result = Result("user-system bench loop", "a machine", [judged("a", 1.0, Goal("<=", 2), "ms")])
    plain = json.loads(json.dumps(result.plain()))
    assert plain == {
        "machine": "a machine",
        "command": "user-system bench loop",
        "figures": [
            {"id": "a", "value": 1.0, "unit": "ms", "goal": "<= 2", "ok": True, "reference": ""}
        ],
    }
    assert result.ok
    assert not Result("", "", [judged("a", 3.0, Goal("<=", 2))]).ok
    assert Result("", "", [Figure("reference only", 3.0)]).ok
    assert result.table().row_count == 1


def test_quantiles():
    assert figures.quantile([3, 1, 2], 0.5) == 2
    assert figures.quantile(range(1, 101), 0.99) == 99
    assert figures.quantile([], 0.5) is None


def test_the_machine_is_named():
    assert f"{len(os.sched_getaffinity(0))} cores" in figures.machine()


def test_only_what_is_asked_for_is_wanted():
    options = bench.Options(only=("loop.steps,loop.wall_s", "loop.rss_gb"))
    assert options.only == ("loop.steps", "loop.wall_s", "loop.rss_gb")
    assert options.wants("loop.kill_lost", "loop.steps")
    assert not options.wants("loop.kill_lost")
    assert bench.Options().wants("loop.kill_lost")


def test_unknown_names_list_what_exists():
    with pytest.raises(ConfigError, match="loop"):
        bench.run("lop", bench.Options())
    with pytest.raises(ConfigError, match=r"loop\.period_p99_ms"):
        bench.run("loop", bench.Options(only=("loop.perod",)))
    with pytest.raises(ConfigError):
        bench.Options(seeds=0)


def test_importing_the_benchmarks_loads_nothing_heavy():
    """Pages shared with the system's processes would make these look smaller."""
    code = "import sys, user_system.cluster.bench.loop; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "mujoco", "ray", "fastapi"} & set(done.stdout.split())


def test_every_figure_of_the_issue_is_measured():
    wanted = {"success", "steps", "wall_s", "cost_ratio", "period_p99_ms", "weights_age_p99_s"}
    wanted |= {"rss_gb", "kill_lost"}
    assert {f"loop.{name}" for name in wanted} <= set(loop.IDS)
    assert len(loop.IDS) == len(set(loop.IDS))


def test_a_part_that_fails_misses_its_figures():
    def broken():
        raise ConfigError("no such thing")
        yield

    found = list(loop._part(broken, kills.IDS))
    assert [figure.id for figure in found] == list(kills.IDS)
    assert all(figure.ok is False and "no such thing" in figure.note for figure in found)


# --- the demo's outcome --------------------------------------------------------------------------

REPORT = {
    "seed": 3,
    "success_rate": 0.97,
    "intervention_rate": 0.1,
    "freeze": {"version": 9.0, "env_steps": 4000.0, "wall_s": 200.0},
    "evaluations": [{"version": 0, "episodes": 20, "successes": 1}],
    "robots": {"a": {"weights_age_p99_s": 0.3}, "b": {"weights_age_p99_s": 0.7}},
}
JOURNAL = [
    {"robot": "b", "steps": 50, "wall_s": 12.0},
    {"robot": "a", "steps": 20, "wall_s": 6.0},
    {"robot": "a", "steps": 50, "wall_s": 14.0},
]


def test_the_outcome_of_a_run():
    got = demo_run.outcome(REPORT, JOURNAL, {"a": 10.0, "b": 10.0}, 8.0, 2**30)
    assert (got.seed, got.success, got.baseline, got.env_steps) == (3, 0.97, 0.05, 4000.0)
    assert got.wall_s == pytest.approx(208.0)
    assert got.learn_s == pytest.approx(200.0 - 5.8)
    assert got.weights_age_s == 0.7


def test_a_run_that_never_froze_learned_nothing():
    report = {**REPORT, "freeze": {}, "success_rate": 0.8}
    got = demo_run.outcome(report, JOURNAL, {"a": 10.0, "b": 10.0}, 8.0, 2**30)
    assert got.success == 0.0
    assert got.env_steps == got.wall_s == got.learn_s == math.inf
    assert demo_run.median([got.env_steps, 4000.0, math.inf]) is None
    assert demo_run.median([got.env_steps, 4000.0, 5000.0]) == 5000.0


def test_the_figures_of_runs():
    run = demo_run.outcome(REPORT, JOURNAL, {"a": 10.0, "b": 10.0}, 8.0, 2**30)
    found = {f.id: f for f in loop._figures(loop.Pairs([run], {3: 1.1}))}
    assert all(figure.ok for figure in found.values())
    assert found["loop.cost_ratio"].value == pytest.approx(1.1)
    failed = loop.Pairs([run, run], {3: 1.1, 4: math.nan}, ["seed 5: it broke"])
    found = {f.id: f for f in loop._figures(failed)}
    assert found["loop.success_worst"].value == 0.0
    assert not found["loop.success"].ok
    assert found["loop.steps"].ok  # the median of two runs and a failed one
    assert found["loop.cost_ratio"].value is None


# --- the period ----------------------------------------------------------------------------------


def test_a_loop_that_sleeps_relatively_drifts_and_one_with_deadlines_does_not(monkeypatch):
    """Played on a clock of our own: each wake-up comes 1 ms late."""
    now = 0

    def sleep(seconds):
        nonlocal now
        now += round(seconds * 1e9) + MS

    monkeypatch.setattr(pacing.time, "monotonic_ns", lambda: now)
    monkeypatch.setattr(pacing.time, "sleep", sleep)
    for pace, slow in ((pacing.relative, 0.02), (pacing.absolute, 0.0)):
        starts = [start for start, _ in zip(pace(50 * MS), range(101), strict=False)]
        assert pacing.slow_share(starts, 50 * MS) == pytest.approx(slow, abs=3e-4)


def test_errors_of_periods():
    assert pacing.errors_ms([0, 50 * MS, 103 * MS, 150 * MS], 50 * MS) == [0.0, 3.0, 3.0]


def test_a_reference_loop_runs_until_it_is_told_to_end(tmp_path):
    path = tmp_path / "relative.json"
    argv = [sys.executable, "-u", "-m", "user_system.cluster.bench.pacing", "relative", "500"]
    loop_ = subprocess.Popen([*argv, str(path)])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            loop_.wait(2.0)
        loop_.send_signal(signal.SIGTERM)
        assert loop_.wait(20.0) == 0
    finally:
        loop_.kill()
        loop_.wait()
    told = json.loads(path.read_text())
    assert told["kind"] == "relative"
    assert len(told["starts"]) > 1


def test_the_period_is_that_of_the_worst_robot():
    robots = tuple(
        RobotView(name, "auto", True, figures={"period_p99_ms": p99, "periods_measured": 5000.0})
        for name, p99 in (("a", 0.5), ("b", 1.5))
    )
    before, after = (
        View("r", "train", 1, {"updates": n, "env_steps": n}, robots, (), {}) for n in (10.0, 900.0)
    )
    references = {
        kind: period.Reference(kind, p99, slow, kind == "floor")
        for kind, p99, slow in (("relative", 4.0, 0.01), ("absolute", 3.8, 0), ("floor", 0.2, 0))
    }
    first = next(iter(period.figures(before, after, references, 5000)))
    assert (first.value, first.ok) == (1.5, True)
    assert "relative sleep 4.00 ms and 1.00% slow" in first.reference
    assert "890 updates meanwhile" in first.note
    with pytest.raises(LinkError, match="stood still"):
        next(iter(period.figures(before, before, references, 5000)))
