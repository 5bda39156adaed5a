"""``user-system replay``: whatever a path is, a command says in one line what is wrong with it.

Never a traceback, never status 0, and nothing is made beside what is there.
"""

import contextlib
import ctypes
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from user_system import cli
from user_system.replay.queue import Queue
from user_system.replay.store import Store

from .episodes import fragment

COMMANDS: dict[str, list[str]] = {
    "stats": ["stats", "{store}"],
    "stats --json": ["stats", "{store}", "--json"],
    "verify": ["verify", "{store}"],
    "salvage": ["salvage", "{store}"],
    "salvage --to": ["salvage", "{store}", "--to", "{free}"],
    "compact": ["compact", "{store}"],
    "merge from": ["merge", "{free}", "{store}"],
    "backup": ["backup", "{store}", "{free}"],
    "restore": ["restore", "{store}", "{free}"],
    "delete": ["delete", "{store}", "arm-0", "--why", "a face"],
    "export": ["export", "{store}", "{free}", "--format", "lerobot"],
    "export to mcap": ["export", "{store}", "{free}", "--format", "mcap"],
    "import into": ["import", "{store}", "{dataset}"],
    "report": ["report", "{store}", "--out", "{free}"],
}
"""Commands that read a store at ``{store}``."""

MAKERS: dict[str, list[str]] = {
    "salvage --to": ["salvage", "{good}", "--to", "{target}"],
    "merge into": ["merge", "{target}", "{good}"],
    "backup to": ["backup", "{good}", "{target}"],
    "restore to": ["restore", "{good}", "{target}"],
    "export to": ["export", "{good}", "{target}", "--format", "lerobot"],
    "export to mcap": ["export", "{good}", "{target}", "--format", "mcap"],
    "import --create": ["import", "{target}", "{dataset}", "--create"],
    "report to": ["report", "{good}", "--out", "{target}"],
}
"""Commands that make something at ``{target}``."""


def run(words: list[str]) -> tuple[int, str, str]:
    """Run a command in this process; return its status and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["user-system", "replay", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        return int(ended.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    return 0, out.getvalue(), err.getvalue()


def absent(root: Path) -> Path:
    return root / "nothing"


def below_absent(root: Path) -> Path:
    return root / "nothing" / "here"


def a_file(root: Path) -> Path:
    (root / "file").write_text("text")
    return root / "file"


def below_a_file(root: Path) -> Path:
    return a_file(root) / "replay"


def empty(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def other_files(root: Path) -> Path:
    (root / "other").mkdir()
    (root / "other" / "notes.txt").write_text("text")
    return root / "other"


def spool(root: Path) -> Path:
    with Queue(root / "spool", max_bytes=1 << 20).open(create=True):
        pass
    return root / "spool"


def later_format(root: Path) -> Path:
    path = good(root)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    return path


def dangling(root: Path) -> Path:
    (root / "link").symlink_to(root / "nowhere")
    return root / "link"


def loop(root: Path) -> Path:
    (root / "loop").symlink_to(root / "loop")
    return root / "loop"


def below_a_loop(root: Path) -> Path:
    return loop(root) / "replay"


def endless_name(root: Path) -> Path:
    return root / ("x" * 300)


def endless_path(root: Path) -> Path:
    return root.joinpath(*["x" * 200] * 30)


def device(root: Path) -> Path:
    return Path("/dev/null")


def kernels(root: Path) -> Path:
    return Path("/proc/self/fdinfo")


def nothing_at_all(root: Path) -> Path:
    return Path("/proc/self/nothing/replay")


def good(root: Path) -> Path:
    with Store(root / "replay").open(create=True):
        pass
    return root / "replay"


def good_but(name: str, spoil: Callable[[Path], object]) -> Callable[[Path], Path]:
    """Return a maker of a store in the place of one of whose files there is something else."""

    def make(root: Path) -> Path:
        path = good(root)
        (path / name).unlink(missing_ok=True)
        spoil(path / name)
        return path

    return make


def a_directory_for(name: str) -> Callable[[Path], Path]:
    return good_but(name, Path.mkdir)


def without(name: str) -> Callable[[Path], Path]:
    return good_but(name, lambda file: None)


def a_loop_for(name: str) -> Callable[[Path], Path]:
    return good_but(name, lambda file: file.symlink_to(file))


def manifest_of(text: bytes) -> Callable[[Path], Path]:
    return good_but("manifest.json", lambda file: file.write_bytes(text))


PLACES: dict[str, Callable[[Path], Path]] = {
    made.__name__.replace("_", " "): made
    for made in (
        *(absent, below_absent, a_file, below_a_file, empty, other_files, spool, later_format),
        *(dangling, loop, below_a_loop, endless_name, endless_path, device, kernels),
        nothing_at_all,
    )
}
FREE = ("absent", "below absent", "dangling")
"""Where something can be made."""
POSSIBLE = (("merge into", "empty"), ("report to", "loop"))
"""Further of the kind: an empty directory becomes a store, a link is written over."""
BROKEN: dict[str, Callable[[Path], Path]] = {
    "manifest is a directory": a_directory_for("manifest.json"),
    "data is a directory": a_directory_for("data.mdb"),
    "lock is a directory": a_directory_for("lock.mdb"),
    "writer lock is a directory": a_directory_for("writer.lock"),
    "data is gone": without("data.mdb"),
    "manifest is a loop": a_loop_for("manifest.json"),
    "data is a loop": a_loop_for("data.mdb"),
    "writer lock is a loop": a_loop_for("writer.lock"),
    "manifest is no text": manifest_of(b"\xff\xfe"),
    "manifest is deep": manifest_of(b"[" * 100_000),
    "manifest is a list": manifest_of(b"[]"),
}
"""What somebody did to a store; some commands do not mind, and others mend it."""


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store with an episode in it, and a dataset."""
    root = tmp_path_factory.mktemp("given")
    with Store(root / "good").open(create=True) as store:
        assert store.append([fragment("arm", 0)]) == []
    status, _, err = run(
        ["export", str(root / "good"), str(root / "dataset"), "--format", "lerobot"]
    )
    assert status == 0, err
    return {"good": root / "good", "dataset": root / "dataset"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_store_that_is_none_is_named(
    tmp_path: Path, given: dict[str, Path], command: str, place: str
) -> None:
    store = PLACES[place](tmp_path)
    before = tree(tmp_path)
    done = run(filled(COMMANDS[command], {**given, "store": store, "free": tmp_path / "free"}))
    if (command, place) == ("verify", "spool"):
        assert done[0] == 0, "a spool can be checked, too"
    else:
        expect_error(done)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", BROKEN)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_store_with_something_else_in_it_is_named_or_served(
    tmp_path: Path, given: dict[str, Path], command: str, place: str
) -> None:
    store = BROKEN[place](tmp_path)
    before = tree(tmp_path)
    done = run(filled(COMMANDS[command], {**given, "store": store, "free": tmp_path / "free"}))
    if done[0] == 0 or (command == "verify" and "1 damaged" in done[1]):
        assert not done[2]
    else:
        expect_error(done)
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "place"),
    [(c, p) for c in MAKERS for p in PLACES if p not in FREE and (c, p) not in POSSIBLE],
)
def test_a_target_that_cannot_be_made_is_named(
    tmp_path: Path, given: dict[str, Path], command: str, place: str
) -> None:
    target = PLACES[place](tmp_path)
    before = tree(tmp_path)
    expect_error(run(filled(MAKERS[command], {**given, "target": target})))
    assert tree(tmp_path) == before


_RIGHTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.test_cli_paths import run
print(json.dumps([run(words) for words in json.load(sys.stdin)]))
"""


def without_rights() -> None:
    """Make what is run mind the rights of files, whoever runs it: root would not."""
    libc, drop_for_good = ctypes.CDLL(None), 24
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(drop_for_good, capability, 0, 0, 0)


@pytest.mark.parametrize("shut", ["", "manifest.json", "data.mdb"])
def test_a_store_that_may_not_be_read_is_named(
    tmp_path: Path, given: dict[str, Path], shut: str
) -> None:
    store = good(tmp_path)
    (store / shut).chmod(0 if shut else 0o600)  # the command line says by itself what has no rights
    words = {**given, "store": store, "free": tmp_path / "free"}
    commands = [filled(command, words) for command in COMMANDS.values()]
    for name, done in zip(COMMANDS, run_without_rights(commands), strict=True):
        assert "rights" in done[2] or shut == "data.mdb", (name, done)
        expect_error(done)
    (store / shut).chmod(0o700)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replay", "replay.made"]


def test_a_place_that_may_not_be_written_is_named(tmp_path: Path, given: dict[str, Path]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o500)
    words = {**given, "target": place / "new"}
    commands = [filled(command, words) for command in MAKERS.values()]
    done = run_without_rights(commands)
    for name, each in zip(MAKERS, done, strict=True):
        assert "Permission denied" in each[2], (name, each)
        expect_error(each)
    assert not any(place.iterdir())


def run_without_rights(commands: list[list[str]]) -> list[tuple[int, str, str]]:
    child = subprocess.run(
        [sys.executable, "-c", _RIGHTS, str(Path(__file__).parents[1])],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=without_rights,
    )
    return [tuple(done) for done in json.loads(child.stdout)]


def test_an_empty_store_has_its_page_of_numbers(tmp_path: Path) -> None:
    status, out, _ = run(["stats", str(good(tmp_path)), "--episodes"])
    assert status == 0
    assert "0 steps of 0 episodes in 0 records" in out


def filled(words: list[str], values: dict[str, Path]) -> list[str]:
    return [word.format(**values) for word in words]


def expect_error(done: tuple[int, str, str]) -> None:
    status, out, err = done
    assert status in (1, 2), (status, out, err)
    lines = err.splitlines()
    assert lines, "it says something"
    assert all(line.startswith(("error: ", "warning: ")) for line in lines), err
    assert len(lines) == 1, err
    assert "Traceback" not in out + err


def tree(root: Path) -> dict[str, int]:
    """Return every path below ``root`` with the size of what is there; locks may come and go."""
    found = {}
    for folder, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(folder) / name
            if name not in ("lock.mdb", "writer.lock"):
                found[str(path.relative_to(root))] = path.lstat().st_mode
    return found
