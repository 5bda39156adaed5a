"""Hosts, a NAT and a bad link on one machine. Times are bounds of links, never of the machine."""

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from user_system.cluster.lab import Lab, Line, Profile, Wire, available, members, topology
from user_system.core.errors import ConfigError, LinkError, MissingError

pytestmark = pytest.mark.skipif(bool(available()), reason=available() or "can be made")

PORT = 7000


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("lan") as lab:
        yield lab


def udp_round_trips(site: Lab | Wire, count: int, wait_s: float = 2.0) -> list[float]:
    """Return what each of ``count`` packets took to the head and back, s; a lost one is absent."""
    head = site.head.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    edge = site.edge.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    began: dict[bytes, float] = {}
    times: dict[bytes, float] = {}

    def hear() -> None:
        with contextlib.suppress(TimeoutError):
            while len(times) < count:
                word = edge.recv(100)
                times[word] = time.monotonic() - began[word]

    with head, edge:
        head.bind((site.head.address, PORT))
        head.settimeout(wait_s)
        edge.settimeout(wait_s)
        edge.connect((site.head.address, PORT))
        threading.Thread(target=_reflect, args=(head,), daemon=True).start()
        hearer = threading.Thread(target=hear)
        hearer.start()
        for i in range(count):
            word = i.to_bytes(4, "big")
            began[word] = time.monotonic()
            edge.send(word)
            time.sleep(0.002)
        hearer.join()
    return list(times.values())


def _reflect(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, peer = sock.recvfrom(100)
            sock.sendto(data, peer)


def connected(site: Lab | Wire) -> tuple[socket.socket, socket.socket]:
    """Return a TCP connection that the edge dialled: its ends at the edge and at the head."""
    server = site.head.within(lambda: socket.create_server((site.head.address, PORT)))
    with server:
        edge = dial(site, site.head.address)
        head, _ = server.accept()
    head.settimeout(10)
    return edge, head


def dial(site: Lab | Wire, address: str, timeout_s: float = 10.0) -> socket.socket:
    return site.edge.within(lambda: socket.create_connection((address, PORT), timeout_s))


def test_packets_take_the_delay_of_both_directions() -> None:
    with Wire(Profile(Line(delay_ms=50), Line(delay_ms=30))) as wire:
        times = udp_round_trips(wire, 50)
    assert len(times) == 50
    assert min(times) >= 0.08
    assert statistics.median(times) < 0.12


def test_loss_is_each_directions_own() -> None:
    with Wire(Profile(Line(loss=0.2), Line())) as wire:
        times = udp_round_trips(wire, 500, wait_s=1.0)
        stats = wire.link.stats()
    assert stats.up.packets >= 500
    assert stats.up.lost + len(times) == 500
    assert 50 < stats.up.lost < 150
    assert stats.down.lost == 0


def test_a_rate_is_kept_and_can_be_changed() -> None:
    """Bytes arrive at 4 Mbit/s, and after the change at 16: what TCP makes of it is its own."""
    with Wire(Profile.both(Line(delay_ms=5, rate_bps=4e6, queue_bytes=64 << 10))) as wire:
        edge, head = connected(wire)
        with edge, head:
            stop = threading.Event()
            threading.Thread(target=_flood, args=(edge, stop), daemon=True).start()
            slow = _goodput(head, 1.5)
            wire.link.change(rate_bps=16e6)
            _goodput(head, 0.5)
            fast = _goodput(head, 1.5)
            stop.set()
    assert slow < 4e6
    assert 2.0 < fast / slow < 6.0


def _flood(sock: socket.socket, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.is_set():
            sock.sendall(b"." * 65536)


def _goodput(sock: socket.socket, seconds: float) -> float:
    """Return bits per second that arrive."""
    total, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        total += len(sock.recv(1 << 16))
    return total * 8 / (time.monotonic() - began)


def test_an_outage_stops_everything_and_tcp_goes_on_after_it() -> None:
    with Wire("lan") as wire:
        edge, head = connected(wire)
        with edge, head:
            edge.sendall(b"before")
            assert head.recv(100) == b"before"
            with wire.link.outage():
                edge.sendall(b"meanwhile")
                head.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    head.recv(100)
            head.settimeout(10)
            assert head.recv(100) == b"meanwhile"
        assert wire.link.stats().up.cut > 0


def test_the_edge_dials_out_under_the_routers_address(lab: Lab) -> None:
    server = lab.head.within(lambda: socket.create_server((lab.head.address, PORT)))
    with server, dial(lab, lab.head.address) as edge:
        head, (seen_as, _) = server.accept()
        with head:
            assert seen_as == lab.public != lab.edge.address
            head.sendall(b"hello")
            assert edge.recv(100) == b"hello"


def test_nothing_can_be_dialled_inwards(lab: Lab) -> None:
    """The head knows the way to the edge, and the edge listens: it is the router that refuses."""
    server = lab.edge.within(lambda: socket.create_server(("0.0.0.0", PORT)))
    with server:
        router = lab.nat.within(
            lambda: socket.create_connection((lab.edge.address, PORT), timeout=5)
        )
        router.close()  # from the router itself it can be reached
        for address in (lab.edge.address, lab.public):
            before = lab.link.stats().down.delivered
            with pytest.raises(TimeoutError):
                lab.head.within(lambda to=address: socket.create_connection((to, PORT), timeout=1))
            assert lab.link.stats().down.delivered > before  # it came as far as the router


def test_several_edges_share_the_router() -> None:
    with Lab("lan", edges=3) as lab:
        server = lab.head.within(lambda: socket.create_server((lab.head.address, PORT)))
        with server, contextlib.ExitStack() as stack:
            for edge in lab.edges:
                call = stack.enter_context(
                    edge.within(lambda: socket.create_connection((lab.head.address, PORT), 10))
                )
                assert call.getsockname()[0] == edge.address
                head, (seen_as, _) = server.accept()
                head.close()
                assert seen_as == lab.public
        assert len({edge.address for edge in lab.edges}) == 3


def test_labs_do_not_see_each_other() -> None:
    with Wire("lan") as one, Wire("lan") as other:
        server = one.head.within(lambda: socket.create_server((one.head.address, PORT)))
        with server:
            dial(one, one.head.address).close()
            with pytest.raises(ConnectionRefusedError):
                dial(other, other.head.address)


def test_commands_run_in_their_host(lab: Lab) -> None:
    assert lab.edge.address in lab.edge.run(["ip", "-4", "address"])
    assert lab.edge.address not in lab.head.run(["ip", "-4", "address"])
    with pytest.raises(LinkError, match=r"failed in edge.*no-such-file"):
        lab.edge.run(["cat", "/no-such-file"])


def test_the_congestion_control_is_chosen() -> None:
    with Wire("lan", congestion="reno") as wire:
        assert wire.congestion == "reno"


def test_what_was_started_ends_with_the_lab() -> None:
    with Wire("lan") as wire:
        process = wire.edge.popen(["sleep", "1000"])
        assert entered(wire, process.pid)
        orphan = wire.head.run(
            [sys.executable, "-c", _ORPHAN], timeout_s=20
        )  # has cleared its environment and left its session
        space = {os.stat(wire.edge.space).st_ino, os.stat(wire.head.space).st_ino}
        assert set(members.inside(space)) == {process.pid, int(orphan)}
    assert process.returncode == -signal.SIGKILL
    assert not Path(f"/proc/{int(orphan)}").exists() or not members.began(int(orphan))


def entered(site: Lab | Wire, pid: int) -> bool:
    space, deadline = {os.stat(site.edge.space).st_ino}, time.monotonic() + 10
    while pid not in members.inside(space) and time.monotonic() < deadline:
        time.sleep(0.01)
    return pid in members.inside(space)


_ORPHAN = """
import subprocess
devnull = subprocess.DEVNULL
child = subprocess.Popen(
    ["sleep", "1000"], env={}, start_new_session=True, stdin=devnull, stdout=devnull, stderr=devnull
)
print(child.pid)
"""

_OWNER = """
import os, sys, time
from user_system.cluster.lab import Wire, members
with Wire("lan") as wire:
    process = wire.edge.popen(["sleep", "1000"])
    while process.pid not in members.inside({os.stat(wire.edge.space).st_ino}):
        time.sleep(0.01)
    print(wire.link.pid, process.pid, flush=True)
    time.sleep(1000)
"""


def owner() -> tuple["subprocess.Popen[str]", int, int]:
    """Start another process with a lab of its own; return it, its emulator, and what it runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    relay, sleeper = map(int, process.stdout.readline().split())
    return process, relay, sleeper


def gone(*pids: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while any(members.began(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_nothing_is_left_when_the_owner_is_killed() -> None:
    process, relay, sleeper = owner()
    with process:
        assert members.began(relay)
        assert members.began(sleeper)
        process.kill()
        process.wait()
        assert gone(relay, sleeper)


def test_what_a_dead_lab_left_is_removed_by_the_next_one() -> None:
    """Owner and emulator killed at once: nobody was left to clean up."""
    process, relay, sleeper = owner()
    with process:
        os.kill(relay, signal.SIGSTOP)  # so that it cannot notice
        process.kill()
        process.wait()
        os.kill(relay, signal.SIGKILL)
        assert gone(relay)
        assert sleeper in members.leftovers()
        with Wire("lan") as wire:
            mine = wire.edge.popen(["sleep", "1000"])
            assert gone(sleeper)
            assert members.leftovers() == []
            assert mine.poll() is None


def test_a_dead_emulator_is_said_so() -> None:
    with Wire("lan") as wire:
        os.kill(wire.link.pid, signal.SIGKILL)
        with pytest.raises(LinkError, match="ended"):
            wire.link.stats()


def test_a_closed_lab_answers_nothing() -> None:
    wire = Wire("lan")
    with pytest.raises(LinkError, match="not open"):
        wire.link.cut()
    with wire:
        pass
    wire.close()
    with pytest.raises(LinkError, match="not open"):
        wire.link.cut()


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(ConfigError, match="edges"):
        Lab("lan", edges=0)
    with pytest.raises(ConfigError, match="MTU"):
        Wire("lan", mtu=9000)


def test_the_reason_why_there_is_no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology.shutil, "which", lambda tool, path: None)
    assert available() == "ip is not installed (Debian package iproute2)"
    with pytest.raises(MissingError, match="iproute2"), Wire("lan"):
        pass
