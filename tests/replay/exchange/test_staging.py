"""A result is there whole, or not there."""

import subprocess
import sys
import textwrap

import pytest

from user_system.core.errors import ConfigError, StoreError
from user_system.replay.exchange.staging import staged


def test_a_folder_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "out"
    with staged(target) as work:
        (work / "a").mkdir(parents=True)
        (work / "a" / "b").write_text("x")
        assert not target.exists()
        assert work.parent == target.parent
    assert (target / "a" / "b").read_text() == "x"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_a_file_appears_when_it_is_whole(tmp_path):
    with staged(tmp_path / "out") as work:
        work.write_text("x")
    assert (tmp_path / "out").read_text() == "x"


@pytest.mark.parametrize("fail", [ValueError("x"), OSError("disk"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path, fail):
    def work():
        with staged(tmp_path / "o") as work:
            work.mkdir()
            (work / "half").write_text("x")
            raise fail

    with pytest.raises(StoreError if isinstance(fail, OSError) else type(fail)):
        work()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path):
    target = tmp_path / "out"

    def work(before):
        if before:
            target.write_text("mine")
        with staged(target) as work:
            work.mkdir()
            assert not before
            target.write_text("somebody was faster")

    for before in (True, False):
        with pytest.raises(ConfigError, match="exists already"):
            work(before)
        assert target.read_text() == ("mine" if before else "somebody was faster")
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
        target.unlink()


def test_a_killed_one_never_looks_finished(tmp_path):
    code = """
        import os, signal, sys
        from pathlib import Path
        from user_system.replay.exchange.staging import staged
        with staged(Path(sys.argv[1])) as work:
            work.mkdir()
            (work / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")], check=False
    )
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.unfinished-")
