"""The spool of a robot host: kill -9, power, failing calls, a full disk."""

import base64
import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from kit import made, powerfail, spools
from kit.files import Mapped
from kit.history import History, Stored
from kit.powerfail import Disk
from kit.recovery import failures, recorded
from kit.syscalls import Moment

pytestmark = [pytest.mark.chaos, pytest.mark.system, pytest.mark.timeout(1800)]

PRODUCERS = 2


def test_kill_9_of_the_host(zygote, tmp_path, rng, size, tally):
    """All that ``put`` returned for is at the head or in the spool, once, in order."""
    history, journal = History(), tmp_path / "journal"
    for kill in range(size.spool_kills):
        with zygote.start(
            "spools:live", place=tmp_path, journal=journal, seed=rng.random(), producers=PRODUCERS
        ) as child:
            if kill % 8:
                assert child.receive() == "ready"
            time.sleep(rng.uniform(0, 0.15))
            child.kill()
    answer = zygote.call("spools:rest", place=tmp_path, producers=PRODUCERS)
    rows = [Stored(*row) for row in answer["rows"]]
    verdict = history.read([journal]).check(rows)
    tally.add("kill -9 of a robot host's spool", f"{size.spool_kills} kills", verdict)
    assert verdict.ok, verdict
    assert verdict.acked > 5 * size.spool_kills
    assert not answer["lost"]


def test_power_goes_while_a_spool_is_used(zygote, memory, rng, seed, size, tally, strace):
    moments = recorded(
        zygote,
        memory,
        "spools:work",
        path=memory / "disk",
        seed=seed,
        operations=150,
        producers=PRODUCERS,
    )
    disk, history, done = Disk(memory / "disk", ("lock.mdb", ".journal.new")), History(), 0
    verdicts, lost = [], 0
    for at in powerfail.choose(moments, size.spool_states, rng):
        for moment in moments[done:at]:
            disk.take(moment)
            listen(moment, disk, history)
        done = at
        state = memory / "state"
        shutil.rmtree(state, ignore_errors=True)
        disk.crash(rng, state)
        answer = zygote.call("spools:recover", place=state, producers=PRODUCERS)
        assert "error" not in answer, f"after {at} moments: {answer['error']}"
        rows = [Stored(*row) for row in answer["rows"]]
        for producer, epoch, sequence in answer["lost"]:
            assert sequence >= history.below[producer, epoch], "what had travelled is lost"
        after = excused(history, answer["lost"])
        verdicts.append(after.check(rows))
        assert verdicts[-1].ok, f"after {at} moments: {verdicts[-1]}"
        lost += len(answer["lost"])
        for name, epoch in answer["epochs"].items():
            assert epoch > history.epochs[name], "an epoch is used a second time"
        assert [len(fresh) for fresh in answer["fresh"]] == [1] * PRODUCERS
    tally.add(
        "power loss, a robot host's spool",
        f"{size.spool_states} states",
        *verdicts,
        acked=history.acked,
        put_and_not_yet_synced_missing=lost,
    )


def excused(history: History, lost: list) -> History:
    """Return a history in which what was in a journal only may be missing, as is said of it."""
    history.refused.clear()
    for producer, epoch, sequence in lost:
        history.refused[producer, epoch].add(sequence)
    return history


def listen(moment: Moment, disk: Disk, history: History) -> None:
    """Take in what the spool's user said, and what it saw in the journals' pages."""
    if moment.call.name != "sendto" or moment.done:
        return
    said = json.loads(moment.call.strings()[0][4:])
    if isinstance(said, dict):
        node = disk.file("journals", said["look"])
        assert isinstance(node, Mapped)
        node.look(base64.b64decode(said["at"]))
    elif " " in said:
        history.event(said)


def test_every_call_may_fail(zygote, memory, rng: random.Random, seed, size, tally, strace):
    verdicts = []
    arguments = {"seed": seed, "operations": 60, "producers": PRODUCERS}
    ended: Counter[int] = Counter()
    for failure in failures(
        zygote, memory, "spools:queue_work", size.failed_calls // 2, rng, **arguments
    ):
        assert failure.status >= 0, failure
        ended[failure.status] += 1
        path = failure.path
        answer = zygote.call("spools:queue_recover", path=path, producers=PRODUCERS)
        # What is set aside without an answer is in the queue or beside it.
        verdict = failure.history.check([Stored(*row) for row in answer["rows"]])
        assert verdict.ok, f"{failure}: {verdict}"
        verdicts.append(verdict)
    tally.add(
        "a spool's N-th system call fails with EIO or ENOSPC",
        f"{len(verdicts)} failures",
        *verdicts,
        hosts_ended_by_an_exception=ended[1],
    )


@pytest.mark.parametrize("by", ["us", "others"])
def test_a_full_disk_fills_the_journal_and_loses_nothing(zygote, memory: Path, tally, by):
    with zygote.start("spools:fill", place=memory / "disk", size=12 << 20, by=by) as child:
        try:
            full = child.receive()
        except EOFError:
            pytest.fail(f"the host ended with {child.wait()}")
        if "skip" in full:
            pytest.skip(full["skip"])
        assert full["full"]
        child.send("free")
        answer = child.receive()
    history, name = History(), made.name(0)
    for sequence in range(full["put"]):
        fragment = made.fragment(name, answer["epoch"], sequence, spools.SIDE)
        history.submit(name, answer["epoch"], sequence, made.digest(fragment))
    history.ack(name, answer["epoch"], full["put"])
    verdict = history.check([Stored(*row) for row in answer["rows"]])
    tally.add(f"a disk under a robot host's spool that {by} filled", "filled and freed", verdict)
    assert verdict.ok, verdict
