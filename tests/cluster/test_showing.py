"""Progress and report say what the hub says."""

import io
import json
from dataclasses import replace

from rich.console import Console

from comms.pb import hub_pb2
from user_system.cluster import report, status
from user_system.cluster.progress import (
    HEADINGS,
    HOST_HEADINGS,
    LINE_S,
    Progress,
    cells,
    host_cells,
)
from user_system.core.types import Purpose

VIEW = status.View(
    run="demo",
    phase="train",
    version=12,
    figures={
        "env_steps": 1234.0, "success_rate": 0.5, "intervention_rate": 0.25, "updates_per_s": 99.6,
        "weights_age_s": 0.31, "episodes": 40.0, "freeze_version": 9.0, "freeze_env_steps": 900.0,
    },
    robots=(
        status.RobotView("arm-1", "auto", True, version=12, figures={"spool_fragments": 3.0}),
        status.RobotView("arm-2", "hold", True, "ann", "Waits.", 11, {"spool_fragments": 3.0}),
    ),
    evaluations=(
        {"version": 0, "episodes": 20, "successes": 1, "env_steps": 0, "wall_s": 9.0},
    ),
    processes={},
)  # fmt: skip

JOURNAL = [
    {"purpose": int(Purpose.COLLECT), "steps": 50, "human_steps": 50, "env_steps": 50,
     "success_rate": 0.0, "intervention_rate": 0.0},
    {"purpose": int(Purpose.TRAIN), "steps": 40, "human_steps": 10, "env_steps": 90,
     "success_rate": 0.5, "intervention_rate": 0.25},
    {"purpose": int(Purpose.TRAIN), "steps": 40, "human_steps": 0, "env_steps": 130,
     "success_rate": 0.6, "intervention_rate": 0.2},
]  # fmt: skip


def test_the_figures_stand_under_their_headings() -> None:
    assert dict(zip(HEADINGS, cells(VIEW), strict=True)) == {
        "phase": "train", "env steps": "1234", "success": "50%", "helped": "25%",
        "updates/s": "100", "version": "12", "stale": "0.3 s", "spool": "3",
    }  # fmt: skip
    assert VIEW.acting == 11


def test_plain_lines_come_every_few_seconds(monkeypatch) -> None:
    monkeypatch.setenv("CI", "true")
    now, out = [100.0], io.StringIO()
    with Progress(console=Console(file=out, width=200), clock=lambda: now[0]) as progress:
        for _ in range(4):
            progress.show(VIEW)
            now[0] += LINE_S / 2
    lines = out.getvalue().splitlines()
    assert lines[0] == "[   0.0 s] evaluation of version 0: 1/20 after 0 env steps"
    assert len(lines) == 3, "an evaluation once, and two lines in two periods"
    assert "env steps 1234 · success 50%" in lines[1]


def test_a_terminal_shows_a_live_table(monkeypatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with Progress("http://here", console=console) as progress:
        progress.show(VIEW)
    assert "http://here" in out.getvalue()
    assert "Waits." in out.getvalue()
    assert "1234" in out.getvalue()


HOSTS = (
    status.HostView("lab-1", True, "awaited", 0.0, current=False),
    status.HostView("lab-2", True, "online", 0.04, "b1", "0.1.0"),
    status.HostView("lab-3", True, "away", 75.0, "b2", "0.1.0"),
    status.HostView("lab-4", True, "online", 1.0, "b3", "0.2.0", False, "head 0.1.0, host 0.2.0"),
    status.HostView("lab-5", True, "online", 1.0, "b4", "0.1.0", False),
    status.HostView("local", False, "online", 0.0, "b5", "0.1.0"),
)


def test_hosts_that_are_waited_for_are_named(monkeypatch) -> None:
    view = replace(VIEW, hosts=HOSTS)
    assert view.awaited == ["lab-1", "lab-3"]
    out = io.StringIO()
    monkeypatch.setenv("CI", "true")
    with Progress(console=Console(file=out, width=200)) as progress:
        progress.show(view)
    assert out.getvalue().rstrip().endswith("· awaited lab-1, lab-3")
    monkeypatch.delenv("CI")
    with Progress(console=Console(file=out, force_terminal=True, width=120)) as progress:
        progress.show(view)
    assert "awaited: lab-1, lab-3" in out.getvalue()


def test_each_host_says_how_it_is_and_what_it_needs() -> None:
    rows = {row[0]: row[1:] for row in map(host_cells, HOSTS)}
    assert all(len(row) + 1 == len(HOST_HEADINGS) for row in rows.values())
    assert rows["lab-1"][:3] == ("remote", "awaited", "never")
    assert "user-system enrol create lab-1" in rows["lab-1"][-1]
    assert rows["lab-2"] == ("remote", "online", "0.0 s ago", "b1", "0.1.0", "")
    assert rows["lab-3"][1:3] == ("away", "75.0 s ago")
    assert rows["lab-4"][-1] == "head 0.1.0, host 0.2.0"
    assert "new setup" in rows["lab-5"][-1]
    assert rows["local"][0] == "here"


def test_a_status_message_becomes_plain_values() -> None:
    told = hub_pb2.SystemStatus(
        hosts=[hub_pb2.HostStatus(name="lab-1", remote=True, link="online", last_seen_s=2.0,
                                  boot="b", version="0.1.0", current=True, trouble="t",
                                  figures={"rate": 3.0})]
    )  # fmt: skip
    (host,) = status.view_of(told).hosts
    assert host == status.HostView(
        "lab-1", True, "online", 2.0, "b", "0.1.0", True, "t", {"rate": 3.0}
    )


def test_a_report_holds_what_it_must(tmp_path) -> None:
    made = report.make(VIEW, JOURNAL, seed=7, wall_s=12.5)
    assert made["seed"] == 7
    assert made["wall_s"] == 12.5
    assert made["env_steps"] == 1234
    assert made["episodes"] == 40
    assert made["success_rate"] == 0.5
    assert made["intervention_rate"] == 10 / 80, "of training steps; demonstrations do not count"
    assert made["freeze"] == {"version": 9.0, "env_steps": 900.0}
    assert made["versions"]["user-system"]
    assert json.loads(report.write(tmp_path, made).read_text()) == made


def test_the_final_judgement_is_the_success_rate() -> None:
    figures = {**VIEW.figures, "final_success": 0.97}
    view = status.View("r", "done", 1, figures, (), (), {})
    assert report.make(view, [], seed=0, wall_s=1.0)["success_rate"] == 0.97


def test_the_learning_curve_is_a_picture(tmp_path) -> None:
    path = report.draw(tmp_path, JOURNAL, VIEW.evaluations)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert report.draw(tmp_path, [], []) == path, "a run that ended at once has an empty one"


def test_a_line_is_printed_to_the_letter() -> None:
    out = io.StringIO()
    text = "compare B6:AB:17:CD:43 [bold]x[/bold]"
    Progress(console=Console(file=out, highlight=False, width=200)).say(text)
    assert text in out.getvalue()
