"""Recording and disturbing the system calls of a process, with strace from beside."""

import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kit.zygote import HANGS_S, Zygote

FILES = (
    *("openat", "open", "creat", "close", "dup", "dup2", "dup3", "fcntl"),
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "lseek", "ftruncate", "truncate"),
    *("fallocate", "copy_file_range", "sendfile", "rename", "renameat", "renameat2"),
    *("unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "link", "linkat", "symlink", "symlinkat"),
    *("fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync", "mmap", "sendto"),
)
"""All that changes files or makes them durable, and ``sendto``, which is how a task talks."""

DISTURBED = (
    *("pwrite64", "pwritev", "writev", "write", "lseek", "fdatasync", "fsync", "ftruncate"),
    *("openat", "rename", "mkdir", "fcntl", "flock"),
)
"""Calls that a sweep lets fail."""

_LINE = re.compile(r"^(?:(\d+) +)?(\w+)\((.*)$", re.DOTALL)
_RESUMED = re.compile(r"^(?:(\d+) +)?<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_RESULT = re.compile(r"^(.*)\) += (-?\d+|\?|0x[0-9a-f]+)(.*)$", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass
class Call:
    """One system call; strings in ``arguments`` are as strace writes them with ``-xx``."""

    thread: int
    name: str
    arguments: str
    result: int | None = None
    """None: it did not return, the process was gone."""
    error: str = ""
    """``EIO`` and the like."""

    def strings(self) -> list[bytes]:
        """Return the strings among the arguments."""
        found = []
        for match in _STRING.finditer(self.arguments):
            if match.group(2):
                raise ValueError(f"strace cut the bytes of {self.name}")
            found.append(bytes.fromhex(match.group(1).replace("\\x", "")))
        return found

    def numbers(self) -> list[str]:
        """Return the arguments without their strings, split at commas."""
        return [part.strip() for part in _STRING.sub("''", self.arguments).split(",")]


@dataclass
class Moment:
    """A call begins, or has returned."""

    call: Call
    done: bool


def parse(lines: Iterator[str]) -> Iterator[Moment]:
    """Yield the beginnings and ends of the calls in a record, in order."""
    open_calls: dict[int, Call] = {}
    for line in lines:
        if resumed := _RESUMED.match(line):
            call = open_calls.pop(int(resumed.group(1) or 0))
            _finish(call, call.arguments + resumed.group(3))
            yield Moment(call, done=True)
        elif begun := _LINE.match(line):
            call = Call(int(begun.group(1) or 0), begun.group(2), "")
            if (cut := begun.group(3).find(" <unfinished ...>")) >= 0:
                call.arguments = begun.group(3)[:cut]
                open_calls[call.thread] = call
                yield Moment(call, done=False)
                continue
            _finish(call, begun.group(3))
            yield Moment(call, done=False)
            yield Moment(call, done=True)


def _finish(call: Call, rest: str) -> None:
    match = _RESULT.match(rest.rstrip("\n"))
    if match is None:
        raise ValueError(f"not a result of {call.name}: {rest[-200:]!r}")
    call.arguments = match.group(1)
    if match.group(2) != "?":
        call.result = int(match.group(2), 0)
    call.error = match.group(3).split()[0] if call.result == -1 else ""


@contextmanager
def attached(pid: int, output: Path, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run strace on a process until that ends; inside, it is attached.

    Raises:
        RuntimeError: it may not; the message says why.
    """
    command = ["strace", "-f", "-o", str(output), "-p", str(pid), *options]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    if tracer.stderr is None:
        raise RuntimeError("no pipe to strace")
    try:
        said = b""
        while b"attached" not in said:
            ready = select.select([tracer.stderr], [], [], HANGS_S)[0]
            part = tracer.stderr.read1(4096) if ready else b""
            if not part:
                raise RuntimeError(f"strace did not attach: {said.decode(errors='replace')}")
            said += part
        yield tracer
        tracer.wait(HANGS_S)
    finally:
        tracer.kill()
        tracer.wait()
        tracer.stderr.close()


def slow(output: Path, seconds: float) -> list[str]:
    """Return the command under which all syncs take so much longer, and nothing else does."""
    calls = "fdatasync,fsync"
    rule = f"inject={calls}:delay_exit={int(seconds * 1e6)}"
    return ["strace", "-f", "--seccomp-bpf", "-o", str(output), "-e", f"trace={calls}", "-e", rule]


def record() -> list[str]:
    """Return the options that write down all bytes that go to files."""
    return ["-xx", "-s", str(1 << 26), "-e", f"trace={','.join(FILES)}", "-e", "signal=none"]


def refuse(call: str, number: int, error: str) -> list[str]:
    """Return the options that let the ``number``-th of a call fail without doing anything."""
    rule = f"inject={call}:error={error}:when={number}"
    return ["-e", f"trace={call}", "-e", rule, "-e", "signal=none"]


def missing(zygote: Zygote, scratch: Path) -> str:
    """Return why strace cannot be used here; empty: it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (scripts/system --tests installs it)"
    with zygote.start("stores:idle") as child:
        try:
            with attached(child.pid, scratch, "-e", "trace=fsync"):
                child.kill()
        except RuntimeError as error:
            return str(error)
    return ""
