"""The power goes, at any moment: whatever subset of what was not synced is on the disk."""

import json
import random
import shutil
from pathlib import Path

import pytest
from kit import powerfail
from kit.history import History, Verdict
from kit.powerfail import Disk
from kit.recovery import recorded, reopened
from kit.syscalls import Moment
from kit.zygote import Zygote

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.system,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("strace"),
]

PRODUCERS, SIDE = 3, 24


def said(moment: Moment) -> str | None:
    """Return what a task said at a moment, as a line of a history."""
    if moment.call.name != "sendto" or moment.done:
        return None
    line = json.loads(moment.call.strings()[0][4:])
    return line if " " in line else None


class Past:
    """A record that is played forwards, with the history that belongs to each moment."""

    def __init__(self, moments: list[Moment], disk: Disk):
        self._moments, self._at = moments, 0
        self.disk, self.history = disk, History()

    def go_to(self, at: int) -> None:
        for moment in self._moments[self._at : at]:
            self.disk.take(moment)
            if line := said(moment):
                self.history.event(line)
        self._at = at


def test_power_goes_while_a_store_is_written(zygote, memory, rng, seed, size, tally):
    moments = recorded(
        zygote,
        memory,
        "stores:work",
        path=memory / "disk" / "replay",
        seed=seed,
        operations=80,
        producers=PRODUCERS,
        side=SIDE,
    )
    past = Past(moments, Disk(memory / "disk"))
    verdicts, unsafe = [], 0
    for at in powerfail.choose(moments, size.states, rng):
        past.go_to(at)
        unsafe += past.disk.unsafe > 0
        verdicts.append(crash(zygote, memory / "state", past, rng))
    tally.add(
        "power loss, the store",
        f"{size.states} states",
        *verdicts,
        acked=past.history.acked,
        system_calls=f"{len(moments) // 2:,}",
        unsynced_in=unsafe,
        unopenable=0,
    )
    assert unsafe > size.states // 2


def crash(zygote: Zygote, state: Path, past: Past, rng: random.Random) -> Verdict:
    """Check one state that the disk may be in now."""
    shutil.rmtree(state, ignore_errors=True)
    past.disk.crash(rng, state)
    return reopened(zygote, state / "replay", past.history)
