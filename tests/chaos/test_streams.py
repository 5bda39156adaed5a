"""Streams that are reset, come late or come twice: everything is stored once and in order."""

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit import wire
from kit.history import History, Stored
from kit.proxy import Proxy
from kit.tally import Tally
from kit.zygote import HANGS_S, Child, Zygote

if TYPE_CHECKING:
    from conftest import Size

pytestmark = [pytest.mark.chaos, pytest.mark.system, pytest.mark.timeout(900)]

PRODUCERS = 2


@pytest.mark.parametrize("echo", [0.0, 0.4])
def test_streams_that_break_anywhere(
    zygote: Zygote,
    tmp_path: Path,
    address: str,
    rng: random.Random,
    size: "Size",
    tally: Tally,
    echo: float,
) -> None:
    """Resets at any byte, rests of old connections behind new ones, messages repeated."""
    keys, store = tmp_path / "keys", tmp_path / "replay"
    wire.enrol(keys, PRODUCERS)
    journals = [tmp_path / f"journal-{number}" for number in range(PRODUCERS)]
    with (
        zygote.start("wire:serve", path=store, keys=keys, address=address) as writer,
        Proxy(address, random.Random(rng.random())) as proxy,
    ):
        writer.receive()
        hosts = [
            zygote.start(
                "wire:produce",
                number=number,
                keys=keys,
                address=proxy.address,
                journal=journals[number],
                seed=rng.randrange(1 << 32),
                echo=echo,
            )
            for number in range(PRODUCERS)
        ]
        deadline = time.monotonic() + HANGS_S + size.resets
        while proxy.resets < size.resets or not proxy.late:
            assert time.monotonic() < deadline, f"{proxy.resets} resets; {zygote.tail()}"
            time.sleep(0.02)
        for host in hosts:
            assert host.receive() == "ready"
        proxy.gentle = True
        while echo and not figures(writer)["duplicates"]:
            assert time.monotonic() < deadline, "repeats are sent, and never noticed"
            time.sleep(0.05)
        for host in hosts:
            host.send("stop")
        for host in hosts:
            assert host.receive() == "drained"
        stats = figures(writer)
        writer.send("end")
        assert writer.receive() == "closed"
    answer = zygote.call("stores:read", path=store)
    verdict = History().read(journals).check([Stored(*row[1:]) for row in answer["rows"]])
    tally.add(
        "streams reset at any byte" + (", messages repeated" if echo else ""),
        f"{proxy.resets} resets",
        verdict,
        rests_that_came_late=proxy.late,
        repeats_noticed=int(stats["duplicates"]),
    )
    assert verdict.ok, verdict
    assert verdict.acked > size.resets


def figures(writer: Child) -> dict[str, float]:
    """Return what the store counts."""
    writer.send("stats")
    found: dict[str, float] = writer.receive()
    return found
