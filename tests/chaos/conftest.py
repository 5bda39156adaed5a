"""Sizes, seeds, processes and places for the tests of survival.

CHAOS=full     the counts that are promised, in minutes; else a quick part
CHAOS_SEED=N   repeat a run; each test prints the seed that it took
CHAOS_REPORT=F write the table of counts to a file
"""

import os
import random
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for ``kit``, here and in the processes that tests start

from kit import syscalls  # noqa: E402
from kit.tally import Tally  # noqa: E402
from kit.zygote import Zygote  # noqa: E402

FULL = os.environ.get("CHAOS") == "full"
_TALLY = Tally()


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    kills: int = 8
    host_kills: int = 3
    states: int = 36
    spool_states: int = 24
    damages: int = 12
    failed_calls: int = 8
    failed_syncs: int = 1
    spool_kills: int = 4
    quotas: int = 3
    slow_s: float = 2.0
    frames: int = 3000
    partitions: tuple[tuple[float, float], ...] = ((1.0, 1.0), (6.0, 2.0))
    """(s, how many times faster it records meanwhile)."""
    bad_link_s: float = 4.0
    resets: int = 15
    herd: int = 12
    skewed_s: float = 2.0


PROMISED = Size(
    kills=520,
    host_kills=40,
    states=1000,
    spool_states=500,
    damages=300,
    failed_calls=200,
    failed_syncs=5,
    spool_kills=150,
    quotas=20,
    slow_s=15.0,
    frames=100_000,
    partitions=((1.0, 1.0), (30.0, 1.0), (60.0, 10.0)),
    bad_link_s=60.0,
    resets=200,
    herd=64,
    skewed_s=15.0,
)


@pytest.fixture(scope="session")
def size() -> Size:
    return PROMISED if FULL else Size()


@pytest.fixture(scope="session")
def base_seed() -> int:
    given = os.environ.get("CHAOS_SEED")
    # In CI the same every time, so that a red build can be repeated.
    return int(given) if given else 1 if os.environ.get("CI") else random.randrange(1 << 32)


@pytest.fixture
def seed(base_seed: int, request: pytest.FixtureRequest) -> int:
    """A number that depends on CHAOS_SEED and on the test."""
    print(f"repeat with CHAOS_SEED={base_seed}")
    return random.Random(f"{base_seed} {request.node.name}").randrange(1 << 32)


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.fixture(scope="session")
def tally() -> Tally:
    return _TALLY


@pytest.fixture(scope="session")
def _zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote") / "log")
    yield zygote
    zygote.close()


@pytest.fixture
def zygote(_zygote: Zygote) -> Iterator[Zygote]:
    """Forks processes; what they complained of is shown where a test fails."""
    before = _zygote.log.stat().st_size
    yield _zygote
    _zygote.end_all()
    with _zygote.log.open("rb") as log:
        log.seek(before)
        print(log.read()[-8000:].decode(errors="replace"))


@pytest.fixture(scope="session")
def _no_strace(_zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> str:
    return syscalls.missing(_zygote, tmp_path_factory.mktemp("strace") / "out")


@pytest.fixture
def strace(_no_strace: str) -> None:
    """Skip where system calls cannot be recorded and disturbed."""
    if _no_strace:
        pytest.skip(_no_strace)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where there is such a place: for what is rebuilt a thousand times."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="chaos-") as path:
        yield Path(path)


@pytest.fixture
def address() -> str:
    """A free one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _TALLY.tried:
        return
    terminalreporter.section(f"survived ({'full' if FULL else 'quick'})")
    terminalreporter.write_line(_TALLY.table())
    if path := os.environ.get("CHAOS_REPORT"):
        _TALLY.write(Path(path))
