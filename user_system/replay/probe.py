"""Looking at a suspicious file in a process that may die of it.

A page that a truncated file lacks is a SIGBUS to whoever touches it, and some damaged pages make
LMDB abort. So a child walks and checks everything (``verify``), and what killed it is a finding.
"""

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from user_system.core.errors import DamageError, StoreError
from user_system.replay import layout
from user_system.replay.progress import Progress

_PROGRESS = b"progress"


@dataclass(frozen=True, slots=True)
class Findings:
    """What a full pass over a directory found."""

    records: int = 0
    images: int = 0
    size: int = 0
    """Bytes looked at."""
    damaged: tuple[str, ...] = ()
    """What is damaged, one line each; empty: every checksum is right."""

    def json(self) -> str:
        """Return what ``parse`` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str | bytes) -> "Findings":
        """Return the findings in ``text``."""
        values = json.loads(text)
        return cls(**{**values, "damaged": tuple(values["damaged"])})

    @property
    def ok(self) -> bool:
        """Whether every byte is what was written."""
        return not self.damaged


def run(path: Path | str, *, progress: Progress = lambda *_: None) -> Findings:
    """Check every record and image of a directory in a child process.

    Raises:
        StoreError: the child could not do its work (not: it died of the file).
    """
    command = [sys.executable, "-P", "-m", "user_system.replay.verify", "--child", str(path)]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as child,
    ):
        try:
            line = b""
            for line in child.stdout or ():
                if line.startswith(_PROGRESS):
                    done, total = line[len(_PROGRESS) :].split()
                    progress("checking", int(done), int(total))
            status = child.wait()
        finally:
            child.kill()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if status < 0:
        name = signal.Signals(-status).name
        return Findings(damaged=(f"reading {layout.DATA} ended in {name}: pages are missing",))
    if status != 0:
        raise StoreError(f"checking {path} failed", got=said[-2000:].strip())
    return Findings.parse(line)


def tell(done: int, total: int) -> None:
    """Say, as the child, how far the check is."""
    print(_PROGRESS.decode(), done, total, flush=True)


def require_readable(path: Path, missing: int) -> None:
    """Let a file that lacks ``missing`` pages pass only where a child read all of it.

    Raises:
        DamageError: it is damaged; says what, and which command helps.
    """
    findings = run(path)
    if not findings.ok:
        raise DamageError(
            f"{path / layout.DATA} is damaged: {missing} pages are missing",
            got="; ".join(findings.damaged[:5]),
            todo=layout.verify_hint(path),
        )
