"""A simulated arm whose policy acts at the head, behind a link that is slow and then cut."""

import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from user_system.cluster.bench import net_policy, net_remote
from user_system.cluster.bench.net_remote import Ends, Seen, figure, site
from user_system.cluster.bench.options import Options
from user_system.cluster.lab import available

pytestmark = pytest.mark.system


class Slow:
    """A TCP relay that lets bytes through after ``delay_s``, and none while it is cut."""

    def __init__(self, target, delay_s):
        self.target, self.delay_s = target, delay_s
        self.open = threading.Event()
        self.open.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.live = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self.live += [near, far]
            for source, sink in ((near, far), (far, near)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                line, news = deque(), threading.Condition()
                for work in (self._take, self._give):
                    args = source, sink, line, news
                    threading.Thread(target=work, args=args, daemon=True).start()

    def _take(self, source, sink, line, news):
        data = b"?"
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            with news:
                line.append((time.monotonic() + self.delay_s, data))
                news.notify()

    def _give(self, source, sink, line, news):
        while True:
            with news:
                news.wait_for(lambda: line)
                due, data = line.popleft()
            time.sleep(max(0.0, due - time.monotonic()))
            self.open.wait()
            with suppress(OSError):
                if not data:
                    sink.shutdown(socket.SHUT_RDWR)
                    return
                sink.sendall(data)

    def close(self):
        self.open.set()
        for end in (self.listener, *self.live):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def ends():
    with socket.socket() as a, socket.socket() as b, socket.socket() as c, socket.socket() as d:
        free = [a, b, c, d]
        for one in free:
            one.bind(("127.0.0.1", 0))
        hub, fresh, replay, policy = (one.getsockname()[1] for one in free)
    ports = replace(
        net_remote.PORTS,
        hub=hub,
        fresh=fresh,
        replay=replay,
        policies={net_remote.ACTOR: policy},
    )
    return Ends(ports=ports)


@pytest.mark.slow
def test_an_arm_acts_on_plans_from_afar_and_rests_without_them(tmp_path, ends):
    relay = Slow(ends.ports.policies[net_remote.ACTOR], 0.06)
    ends = replace(ends, detour=f"127.0.0.1:{relay.port}")
    with site(tmp_path, ends, steps=40) as here:
        first, second = here.episode(), here.episode()
        # The link dies in the midst of the third one, for longer than a chunk lasts.
        time.sleep(2.0)
        relay.open.clear()
        time.sleep(2.5)
        relay.open.set()
        third = here.episode()
    relay.close()
    for seen in (first, second, third):
        position, chunk = np.array(seen.positions), np.array(seen.chunks)
        acted = position >= 0
        assert acted.sum() >= 40 - 4, "but for the first plan, each of 40 steps has its action"
        assert position[acted].min() >= 2, "what belongs to the past is not executed"
        assert position[acted].max() < net_policy.HORIZON
        # Within a chunk every step executes its own action: none is repeated, none left out.
        same = acted[1:] & acted[:-1] & (chunk[1:] == chunk[:-1])
        assert (np.diff(position)[same] == 1).all()
        # Chunks overlap: the next one begins where it has come to.
        border = acted[1:] & acted[:-1] & (chunk[1:] != chunk[:-1])
        assert (np.diff(chunk)[border] == 1).all()
    assert second.starved == 0, "the next plan is there before the one at hand runs out"
    gap = np.flatnonzero(np.array(third.positions) < 0)
    gap = gap[gap > third.waited]
    assert len(gap) >= 5, "it was starved"
    assert third.starved == len(gap)
    # The tool comes to rest, and stays at rest until a plan is there.
    speed = np.linalg.norm(np.diff(third.tool, axis=0), axis=1) * net_remote.HZ
    assert speed[: gap[0]].max() > 0.005
    assert speed[gap[-3] : gap[-1]].max() < 0.001
    assert speed.max() < 0.1, "no jump where plans begin again"


@pytest.mark.slow
@pytest.mark.skipif(bool(available()), reason=available() or "can be made")
def test_the_measurement_works_between_namespaces(tmp_path):
    (made,) = net_remote.measure(Options(quick=True, directory=tmp_path))
    assert made.value < 20.0
    assert "0 starved later" in made.note


def test_the_figure_says_what_it_is_made_of():
    seen = Seen(10.2, 100, (-1, -1, *[2, 3, -1, 4] * 24, 2, 3), (0,) * 100, np.zeros((100, 3)))
    made = figure([seen, replace(seen, total_s=10.4)])
    assert (made.value, made.ok) == (10.4, True)
    assert "after 2 steps, 48 starved later" in made.note
    assert "10.20, 10.40" in made.reference
    assert not figure([replace(seen, total_s=10.6)]).ok


def test_the_plugin_is_known_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(net_policy.install(tmp_path)))
    from user_system.core.registry import Registry

    assert Registry("learners").get(net_policy.KIND) is net_policy.plugin
