"""kill -9 of the writer under four producers, over the real wire, as often as is promised."""

import random
import time
from pathlib import Path

import pytest
from kit import made, wire
from kit.history import History, Stored
from kit.tally import quantile
from kit.zygote import HANGS_S, Child, Zygote

pytestmark = [pytest.mark.chaos, pytest.mark.system, pytest.mark.timeout(1800)]

PRODUCERS = 4


class Lab:
    """Producers, one writer at a time, a learner beside it, and what was promised so far."""

    def __init__(self, zygote: Zygote, place: Path, address: str, rng: random.Random):
        self.zygote, self.address, self.rng = zygote, address, rng
        self.store, self.keys, self.place = place / "replay", place / "keys", place
        self.history = History()
        self.found: list[Stored] = []
        self.opened_s: list[float] = []
        self.journals: list[Path] = []
        self._epochs = 0
        wire.enrol(self.keys, PRODUCERS)
        self.producers = [self.producer(number) for number in range(PRODUCERS)]

    def producer(self, number: int) -> Child:
        """Start one producer, in epochs that none before it used."""
        journal = self.place / f"journal-{number}-{self._epochs}"
        self.journals.append(journal)
        child = self.zygote.start(
            "wire:produce",
            number=number,
            keys=self.keys,
            address=self.address,
            journal=journal,
            seed=self.rng.randrange(1 << 32),
            first_epoch=1 + 1000 * self._epochs,
        )
        assert child.receive() == "ready"
        self._epochs += 1
        return child

    def writer(self) -> Child:
        return self.zygote.start(
            "wire:serve", path=self.store, keys=self.keys, address=self.address
        )

    def acked(self) -> int:
        return self.history.read(self.journals).acked

    def wait_for_acks(self, count: int) -> None:
        """Wait until so many more are acked."""
        target, deadline = self.acked() + count, time.monotonic() + HANGS_S
        while self.acked() < target:
            assert time.monotonic() < deadline, f"nothing is acked any more: {self.zygote.tail()}"
            time.sleep(0.003)

    def look(self) -> None:
        """Read what is new in the store and compare all with what was promised."""
        answer = self.zygote.call("stores:read", path=self.store, start=len(self.found))
        assert [row[0] for row in answer["rows"]] == list(
            range(len(self.found), len(self.found) + len(answer["rows"]))
        )
        self.found += [Stored(*row[1:]) for row in answer["rows"]]
        verdict = self.history.check(self.found)
        assert verdict.ok, verdict

    def live(self) -> None:
        """One life of a writer, ended at any moment."""
        with self.writer() as child:
            if self.rng.random() < 0.1:
                time.sleep(self.rng.uniform(0, 0.03))  # while it opens
            else:
                self.opened_s.append(child.receive()["opened_s"])
                self.wait_for_acks(1)
                time.sleep(self.rng.uniform(0, 0.1))
            child.kill()
        self.history.read(self.journals)

    def drain(self) -> None:
        """Let a last writer take all that is left."""
        with self.writer() as child:
            child.receive()
            for producer in self.producers:
                producer.send("stop")
            for producer in self.producers:
                assert producer.receive() == "drained"
                assert producer.wait() == 0
            child.send("end")
            assert child.receive() == "closed"
            child.wait()
        self.history.read(self.journals)


def test_kill_9_of_the_writer(zygote, tmp_path, address, rng, size, tally):
    lab = Lab(zygote, tmp_path, address, rng)
    ended = 0
    with lab.writer() as first:
        first.receive()
        lab.wait_for_acks(1)
        first.kill()
    with zygote.start("wire:learn", path=lab.store, seed=1) as learner:
        assert learner.receive() == "ready"
        for kill in range(1, size.kills):
            lab.live()
            if kill % 5 == 0:
                lab.look()
            if (
                kill % max(3, size.kills // 6) == 0
            ):  # a producer goes too, with what nobody promised it
                number = rng.randrange(PRODUCERS)
                lab.producers[number].kill()
                lab.producers[number].channel.close()
                lab.producers[number] = lab.producer(number)
                ended += 1
        lab.drain()
        learner.send("stop")
        seen = learner.receive()
    lab.found.clear()
    lab.look()  # once more from the very start
    verdict = lab.history.check(lab.found)
    tally.add(
        "kill -9 of the writer, 4 producers over gRPC with mutual TLS",
        f"{size.kills} kills",
        verdict,
        producers_killed=ended,
        rows_drawn_meanwhile=f"{seen['rows']:,}",
        of_them_wrong=len(seen["wrong"]),
        reopened_in_p99=f"{1000 * quantile(lab.opened_s, 0.99):.1f} ms",
    )
    assert verdict.ok, verdict
    assert seen["rows"] > 0
    assert not seen["wrong"]
    assert not seen["damaged"]


def test_kill_9_of_both_ends(zygote, tmp_path, address, rng, size, tally):
    """Hosts with real spools on one side, the writer on the other: any of them goes at any time."""
    hosts, keys, history = 2, tmp_path / "keys", History()
    wire.enrol(keys, hosts)
    journals = [tmp_path / f"journal-{number}" for number in range(hosts)]

    def start(number: int) -> Child:
        if number == hosts:
            return zygote.start("wire:serve", path=tmp_path / "replay", keys=keys, address=address)
        return zygote.start(
            "wire:host",
            place=tmp_path / made.name(number),
            number=number,
            keys=keys,
            address=address,
            journal=journals[number],
            seed=rng.randrange(1 << 32),
        )

    processes = [start(number) for number in range(hosts + 1)]
    for process in processes:
        process.receive()
    for _ in range(size.host_kills):
        victim = rng.randrange(hosts + 1)
        time.sleep(rng.uniform(0, 0.4))
        processes[victim].kill()
        processes[victim] = start(victim)
        if rng.random() < 0.8:
            processes[victim].receive()
    for number in range(hosts):
        processes[number].send("stop")
    for number in range(hosts):
        while processes[number].receive() != "drained":
            pass
    answer = zygote.call("stores:read", path=tmp_path / "replay")
    verdict = history.read(journals).check([Stored(*row[1:]) for row in answer["rows"]])
    tally.add("kill -9 of writer and robot hosts with spools", f"{size.host_kills} kills", verdict)
    assert verdict.ok, verdict
    assert verdict.acked > size.host_kills
