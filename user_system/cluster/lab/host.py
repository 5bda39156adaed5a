"""One host of a lab: run anything in it."""

import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from user_system.cluster.lab import members
from user_system.cluster.lab.namespaces import enter
from user_system.core.errors import LinkError

T = TypeVar("T")

_RUN_S = 120.0
"""Bounds a hang; says nothing about speed."""


class Host:
    """One host of a lab: a network namespace in which anything can be run."""

    def __init__(self, name: str, address: str, space: str):
        self.name = name
        self.address = address
        """Its IPv4 address, as those on its side of the link see it."""
        self.space = space
        """Path of its network namespace; as long as the lab is open."""
        self._started: list[subprocess.Popen[Any]] = []

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs ``argv`` in there; the process becomes ``argv``."""
        return ["nsenter", f"--net={self.space}", "--", *argv]

    def popen(self, argv: Sequence[str], **kwargs: Any) -> "subprocess.Popen[Any]":
        """Start a command in there; ``kwargs`` as of ``subprocess.Popen``. It ends with the lab."""
        environment = kwargs.pop("env", None)
        environment = {**(os.environ if environment is None else environment)}
        environment[members.MARK] = members.mark()
        environment.setdefault("PATH", search_path())
        process = subprocess.Popen(self.argv(argv), env=environment, **kwargs)
        self._started.append(process)
        return process

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout_s: float = _RUN_S
    ) -> str:
        """Run a command in there to its end; return what it printed.

        Raises:
            LinkError: it failed, with what it complained about, or took too long.
        """
        try:
            done = subprocess.run(
                self.argv(argv),
                input=input,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                env={**os.environ, "PATH": search_path(), members.MARK: members.mark()},
            )
        except subprocess.TimeoutExpired as error:
            raise LinkError(f"{argv[0]} in {self.name} took over {timeout_s:g} s") from error
        if done.returncode:
            got = (done.stderr or done.stdout).strip()
            raise LinkError(f"{' '.join(argv)} failed in {self.name}", got=got)
        return done.stdout

    def ip(self, *commands: str) -> None:
        """Run commands of ``ip`` in there, all in one process."""
        self.run(["ip", "-batch", "-"], input="".join(f"{command}\n" for command in commands))

    def sysctl(self, name: str, value: str) -> None:
        """Set a value of the kernel's, such as ``net/ipv4/ip_forward``, for this host alone."""
        self.run(["tee", f"/proc/sys/{name}"], input=value)

    def within(self, call: Callable[[], T]) -> T:
        """Return ``call()``, made in a thread in there: the sockets it makes belong to this host.

        For plain sockets. A library with threads of its own (gRPC, ZeroMQ) belongs into ``popen``.
        """
        found: list[T] = []
        failed: list[BaseException] = []

        def work() -> None:
            try:
                descriptor = os.open(self.space, os.O_RDONLY)
                try:
                    enter(descriptor)
                finally:
                    os.close(descriptor)
                found.append(call())
            except BaseException as error:  # top of a thread: raised again by whoever waits for it
                failed.append(error)

        thread = threading.Thread(target=work, name=f"in {self.name}")
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]

    def reap(self) -> None:
        """Wait for what was started here; what had not even entered when the lab ended is ended."""
        for process in self._started:
            process.kill()
            process.wait()
        self._started.clear()


def search_path() -> str:
    """Return where commands are looked for: an unprivileged PATH often lacks the tools' homes."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
