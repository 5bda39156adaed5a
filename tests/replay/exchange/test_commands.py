"""From the command line: out, in, and what goes wrong on the way."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from user_system import cli

COMMAND = Path(sys.executable).with_name("user-system")


def call(*arguments):
    return subprocess.run(
        [COMMAND, "replay", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["user-system", "replay", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def store(kit, rng, filled):
    kind = kit.Kind(
        cameras={"front": (24, 32, 3)},
        extras={"logp": ("float32", ())},
        streams={"force": ("float32", (6,))},
    )
    life = kit.Life(rng, kind)
    parts = [
        *life.episode([50, 12], voids={1: 40}, success=True, streams={"force": 9}),
        *life.episode([7], task="push"),
    ]
    return filled(parts, [("arm-1", "value", "v1", None, np.arange(62, dtype=np.float32))])


def test_a_round_trip(tmp_path, kit, store):
    out = call("export", store, tmp_path / "out", "--format", "lerobot")
    assert (out.returncode, out.stderr) == (0, "")
    assert out.stdout == f"{tmp_path / 'out'}: 2 episodes, 69 steps\n"
    back = call("import", tmp_path / "back", tmp_path / "out", "--create")
    assert (back.returncode, back.stderr) == (0, "")
    assert "69 steps in 3 fragments from 2 episodes (an export of ours), 1 labels" in back.stdout
    assert kit.same_store(store, tmp_path / "back") == 2
    again = call("import", tmp_path / "back", tmp_path / "out", "--json")
    assert json.loads(again.stdout)["steps"] == 0


def test_video_states_what_it_cost(tmp_path, monkeypatch, capsys, store):
    options = "--format", "lerobot", "--images", "video"
    assert run_main(monkeypatch, "export", store, tmp_path / "out", *options) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("video front: PSNR ")
    assert line.split(" over ")[1].startswith("69 frames, worst ")
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    stated = info["user_system"]["loss"]["front"]["psnr_db"]
    assert f"PSNR {stated:.1f} dB" in line


def test_names_and_segments_choose(tmp_path, monkeypatch, capsys, store):
    target = tmp_path / "out"
    chosen = "--format", "lerobot", "--task", "push", "--segments", "demo,auto", "--json"
    run_main(monkeypatch, "export", store, target, *chosen)
    done = json.loads(capsys.readouterr().out)
    assert 0 < done["steps"] <= 7
    info = json.loads((target / "meta" / "info.json").read_text())
    assert info["user_system"]["segments"] == ["AUTO", "DEMO"]


def test_mcap(tmp_path, monkeypatch, capsys, store):
    target = tmp_path / "out.mcap"
    assert run_main(monkeypatch, "export", store, target, "--format", "mcap") == 0
    assert capsys.readouterr().out == f"{target}: 2 episodes, 69 steps\n"
    assert target.read_bytes().startswith(b"\x89MCAP")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--format", "mcap", "--images", "video"), "mcap keeps images as PNG"),
        (
            ("--format", "lerobot", "--segments", "DEMO,NAP"),
            "unknown segment; got ['NAP']; al",
        ),
        (("--format", "lerobot", "--robot", "nobody"), "there is no such step"),
        (("--format", "lerobot", "--fps", "0"), "frames per second; got 0"),
    ],
)
def test_wrong_wishes_are_one_line(tmp_path, monkeypatch, capsys, store, arguments, line):
    assert run_main(monkeypatch, "export", store, tmp_path / "out", *arguments) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_others_must_say_or_be_told_its_robot(tmp_path, monkeypatch, capsys, foreign):
    theirs = foreign().drop("next.reward", "next.done")
    theirs.info["robot_type"] = None
    source = theirs.write(tmp_path / "theirs")
    base = "import", tmp_path / "back", source, "--create"
    assert run_main(monkeypatch, *base) == 2
    assert "Say --robot NAME" in capsys.readouterr().err
    assert run_main(monkeypatch, *base, "--robot", "left", "--reward", "sparse") == 0
    assert "71 steps in 4 fragments from 3 episodes (demonstrations)" in capsys.readouterr().out


def test_a_broken_dataset_is_one_line(tmp_path, monkeypatch, capsys, foreign):
    source = foreign().write(tmp_path / "theirs")
    (source / "data/chunk-000/file-001.parquet").write_bytes(b"PAR1")
    assert run_main(monkeypatch, "import", tmp_path / "back", source, "--create") == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "file-001.parquet is not a whole Parquet file" in said
    assert not (tmp_path / "back").exists()


def test_what_was_left_out_is_said(tmp_path, monkeypatch, capsys, store):
    from user_system.core.errors import DamageError
    from user_system.replay import images

    read = images.read_stack

    def damaged(txn, table, offset, *rest):
        if offset == 0:
            raise DamageError("flipped")
        return read(txn, table, offset, *rest)

    monkeypatch.setattr(images, "read_stack", damaged)
    options = "--format", "lerobot"
    assert run_main(monkeypatch, "export", store, tmp_path / "out", *options) == 0
    said = capsys.readouterr()
    assert "warning: 1 fragments with damaged images were left out" in said.err
    assert said.out == f"{tmp_path / 'out'}: 2 episodes, 19 steps\n"


def test_a_missing_package_is_one_line(tmp_path, monkeypatch, capsys, store):
    import importlib.util

    from user_system.replay import exchange

    real = importlib.util.find_spec
    monkeypatch.setattr(exchange, "find_spec", lambda name: None if name == "av" else real(name))
    assert run_main(monkeypatch, "export", store, tmp_path / "out", "--format", "lerobot") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: Python package av is missing. Install it: pip install 'user-system[exchange]'."
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom user_system import cli\n"
        "sys.argv = ['user-system', 'replay', 'export', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'pyarrow', 'av', 'PIL', 'mcap', 'lmdb', 'rich.progress'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--segments" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
