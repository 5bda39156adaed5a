"""A disk that takes its time, and a disk that says it failed."""

import time
from contextlib import closing

import psutil
import pytest
from kit import syscalls, wire
from kit.history import History, Stored
from kit.zygote import HANGS_S, Zygote

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.system,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("strace"),
]

PRODUCERS, PER_S = 4, 50
LEAST = 0.6
"""Of the acks per second with a usual disk."""


class Lab:
    """Producers at a steady rate, and a writer that is watched."""

    def __init__(self, zygote, place, address, rng):
        self.zygote, self.place, self.address = zygote, place, address
        self.history = History()
        wire.enrol(place / "keys", PRODUCERS)
        self.journals = [place / f"journal-{number}" for number in range(PRODUCERS)]
        self.producers = [
            zygote.start(
                "wire:produce",
                number=number,
                keys=place / "keys",
                address=address,
                journal=self.journals[number],
                seed=rng.randrange(1 << 32),
                per_s=PER_S,
                under_way=100,
            )
            for number in range(PRODUCERS)
        ]
        for producer in self.producers:
            assert producer.receive() == "ready"

    def writer(self, zygote=None):
        return (zygote or self.zygote).start(
            "wire:serve",
            path=self.place / "replay",
            keys=self.place / "keys",
            address=self.address,
            first_map=1 << 26,
        )

    def acked(self) -> int:
        return self.history.read(self.journals).acked

    def rate(self, seconds: float) -> float:
        """Return acks per second, once they flow."""
        begin = self.acked()
        deadline = time.monotonic() + HANGS_S
        while self.acked() < begin + 20:
            assert time.monotonic() < deadline, "no acks"
            time.sleep(0.01)
        begin, started = self.acked(), time.monotonic()
        time.sleep(seconds)
        return (self.acked() - begin) / (time.monotonic() - started)

    def finish(self):
        """Drain with a sound disk; return what is wrong in the end."""
        with self.writer() as child:
            child.receive()
            for producer in self.producers:
                producer.send("stop")
            for producer in self.producers:
                assert producer.receive() == "drained"
            child.kill()
        answer = self.zygote.call("stores:read", path=self.place / "replay")
        self.history.read(self.journals)
        return self.history.check([Stored(*row[1:]) for row in answer["rows"]])


def test_a_slow_disk_makes_commits_larger_not_memory(zygote, tmp_path, address, rng, size, tally):
    lab = Lab(zygote, tmp_path, address, rng)
    with lab.writer() as child:
        child.receive()
        usual = lab.rate(size.slow_s)
        child.kill()
    syrup = Zygote(tmp_path / "log", syscalls.slow(tmp_path / "record", 0.2))
    with closing(syrup), lab.writer(syrup) as child:
        child.receive()
        lab.rate(size.slow_s)  # what is under way settles
        before, slow = psutil.Process(child.pid).memory_full_info().uss, 0.0
        for _ in range(4):  # noisy cores slow it down too, but not for ever
            slow = max(slow, lab.rate(size.slow_s))
            if slow >= LEAST * usual:
                break
        grown = psutil.Process(child.pid).memory_full_info().uss - before
        child.kill()
    verdict = lab.finish()
    tally.add(
        "syncs of 200 ms, 4 producers over gRPC",
        f"{size.slow_s:g} s",
        verdict,
        acks_per_s=f"{slow:.0f} of {usual:.0f}",
        memory_grown=f"{grown / 2**20:.1f} MiB",
    )
    assert verdict.ok, verdict
    assert slow >= LEAST * usual
    assert grown <= 64 << 20


def test_a_sync_that_fails_stops_the_writer_before_the_ack(
    zygote, tmp_path, address, rng, size, tally
):
    lab = Lab(zygote, tmp_path, address, rng)
    with lab.writer() as child:
        child.receive()
        lab.rate(0.1)
        child.kill()
    verdicts = []
    for _ in range(size.failed_syncs):
        number = rng.randint(3, 12)
        with (
            lab.writer() as child,
            syscalls.attached(
                child.pid, tmp_path / "record", *syscalls.refuse("fdatasync", number, "EIO")
            ),
        ):
            deadline = time.monotonic() + HANGS_S
            while "EIO" not in (tmp_path / "record").read_text():
                assert time.monotonic() < deadline, "no sync failed"
                time.sleep(0.02)
            time.sleep(0.3)  # what was acked before has arrived
            acked = lab.acked()
            time.sleep(1.0)
            assert lab.acked() == acked, "acks after a failed sync"
            child.kill()
        answer = zygote.call("stores:read", path=tmp_path / "replay")
        lab.history.read(lab.journals)
        verdicts.append(lab.history.check([Stored(*row[1:]) for row in answer["rows"]]))
        assert verdicts[-1].ok, verdicts[-1]
    verdict = lab.finish()
    tally.add(
        "a sync that fails with EIO",
        f"{len(verdicts)} failures",
        verdict,
        *verdicts,
        acked=verdict.acked,
    )
    assert verdict.ok, verdict
