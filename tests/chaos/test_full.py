"""No space left: on the disk, in the map."""

import time
from pathlib import Path

import pytest
from kit import made, wire
from kit.history import History, Stored
from kit.zygote import HANGS_S, Zygote

pytestmark = [pytest.mark.chaos, pytest.mark.system, pytest.mark.timeout(600)]

PRODUCERS = 4


def test_a_full_disk_stops_acks_and_nothing_else(zygote, memory, tmp_path, address, rng, tally):
    keys, disk = tmp_path / "keys", memory / "disk"
    wire.enrol(keys, PRODUCERS)
    journals = [tmp_path / f"journal-{number}" for number in range(PRODUCERS)]
    history = History()
    writer = zygote.start(
        "wire:serve_tiny", path=disk, keys=keys, address=address, size=16 << 20, ballast=5 << 20
    )
    if "skip" in (answer := writer.receive()):
        pytest.skip(answer["skip"])
    producers = [
        zygote.start(
            "wire:produce",
            number=number,
            keys=keys,
            address=address,
            journal=journals[number],
            seed=rng.randrange(1 << 32),
        )
        for number in range(PRODUCERS)
    ]
    wait(lambda: ask(writer, "figures")["store_errors"] >= 3, "a full disk")
    acked = history.read(journals).acked
    assert ask(writer, "draw") == []
    promised = History().read(journals)
    while_full = promised.check([Stored(*row) for row in ask(writer, "rows")])
    assert not while_full.lost, while_full
    writer.send("free")
    freed = time.monotonic()
    wait(lambda: history.read(journals).acked > acked + 64, "acks after space came back")
    resumed_s = time.monotonic() - freed
    for producer in producers:
        assert producer.receive() == "ready"
        producer.send("stop")
    for producer in producers:
        assert producer.receive() == "drained"
    rows = [Stored(*row) for row in ask(writer, "rows")]
    verdict = history.read(journals).check(rows)
    writer.send("end")
    assert writer.receive() == "closed"
    tally.add(
        "a full disk, 4 producers over gRPC",
        "1 disk filled and freed",
        verdict,
        acks_again_after=f"{resumed_s:.1f} s",
    )
    assert verdict.ok, verdict


def ask(writer, order: str):
    writer.send(order)
    return writer.receive()


def wait(condition, what: str) -> None:
    deadline = time.monotonic() + HANGS_S
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.01)


def test_a_map_that_cannot_grow_is_an_error(zygote: Zygote, memory: Path, tally):
    full = zygote.call("stores:fill_map", path=memory / "replay", more=24 << 20, side=32)
    assert full["error"].startswith("StoreError"), full["error"] or "the map was never full"
    history = History()
    for sequence in range(full["acked"] + 2):
        hash = made.digest(made.fragment(made.name(0), 1, sequence, 32))
        history.submit(made.name(0), 1, sequence, hash)
    history.ack(made.name(0), 1, full["acked"])
    verdict = history.check([Stored(*row) for row in full["rows"]])
    tally.add("a full map that cannot grow", "1 map", verdict)
    assert verdict.ok, verdict
    assert full["refused"] == []
