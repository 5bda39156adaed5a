"""Benchmarks by name. Each measures the real system on this machine and compares with its goals."""

import contextlib
import importlib
import logging
import signal
from collections.abc import Iterator
from typing import Any

from user_system.cluster.bench.figures import Result, machine
from user_system.cluster.bench.options import Options
from user_system.core.errors import ConfigError

__all__ = ["Options", "Result", "names", "run"]

BENCHES = {
    name: f"user_system.cluster.bench.{name}" for name in ("ingest", "loop", "net", "replay")
}
"""Name -> module with ``IDS`` and ``measure(options) -> Iterator[Figure]``."""


def names() -> list[str]:
    """Return the benchmarks there are."""
    return sorted(BENCHES)


def run(name: str, options: Options) -> Result:
    """Measure; returns once everything that was started has ended, also on Ctrl-C and SIGTERM.

    Raises:
        ConfigError: no such benchmark or figure.
    """
    if name not in BENCHES:
        raise ConfigError("no such benchmark", got=name, allowed=", ".join(names()))
    bench = importlib.import_module(BENCHES[name])
    if unknown := set(options.only) - set(bench.IDS):
        raise ConfigError(
            f"benchmark {name} has no such figure",
            got=", ".join(sorted(unknown)),
            allowed=", ".join(bench.IDS),
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    before = machine()
    with _ending_like_ctrl_c():
        figures = [figure for figure in bench.measure(options) if options.wants(figure.id)]
    return Result(command(name, options), before, figures)


def command(name: str, options: Options) -> str:
    """Return the command line that measures the same again."""
    words = ["user-system", "bench", name]
    for figure in options.only:
        words += ["--only", figure]
    default = Options()
    for option in ("seeds", "periods", "manifest"):
        if (value := getattr(options, option)) != getattr(default, option):
            words += [f"--{option}", str(value)]
    if options.directory != default.directory:
        words += ["--dir", str(options.directory)]
    if options.quick:
        words += ["--quick"]
    return " ".join(words)


@contextlib.contextmanager
def _ending_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that ``with`` blocks end what they started."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
