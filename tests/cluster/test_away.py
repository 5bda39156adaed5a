"""An actor at the head: what is started for it, what it may use, and what becomes of a hang."""

import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from comms import tunnel_ssh
from comms.credentials import Credentials, Role, parse, subject
from comms.tunnel import Endpoints
from user_system.cluster import away, enrol, machine, policy_host, ports, setup, tunnels
from user_system.cluster.compose import Composer
from user_system.cluster.edge_host import _robot
from user_system.cluster.layout import RunDir
from user_system.cluster.manifest import HostEntry, TunnelEntry, load_manifest
from user_system.cluster.plan import everything
from user_system.cluster.ports import Ports
from user_system.cluster.tree import Problems
from user_system.core.errors import ConfigError, LinkError, PluginError
from user_system.core.types import Plan
from user_system.edge.messages import WeightsReady
from user_system.edge.uplink import Entry, Uplink

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
PORTS = Ports(
    hub=7001,
    fresh=7002,
    replay=7003,
    page=7004,
    ray=7005,
    ray_client=7006,
    reader=7007,
    policies={"pick": 7010},
)
HEAD = "actors.pick.where=head"


def composer(tmp_path, *settings, **more):
    run = RunDir(tmp_path / "run", tmp_path / "short")
    return Composer(load_manifest(DEMO, settings), run, PORTS, cores=(0, 1), **more)


def by_name(processes):
    return {process.spec.name: process for process in everything(processes)}


def test_an_actor_at_the_head_has_a_process_there(tmp_path):
    made = composer(tmp_path, HEAD, "actors.pick.cpus=3", "actors.pick.gpus=1", gpus=2)
    found = by_name(made.processes())
    policy, worker, edge = found["policy-pick"], found["worker-local-pick"], found["edge-local"]
    assert policy.host == "head"
    assert policy.ports == (7010,)
    assert policy.spec.env["OMP_NUM_THREADS"] == "3"
    assert policy.spec.env["CUDA_VISIBLE_DEVICES"] == "1", "learners have the first one"
    assert "--num-gpus=1" in found["ray"].spec.argv
    assert {r.name: r.host for r in policy.config.robots} == {"arm-1": "local", "arm-2": "local"}
    assert policy.config.policy == "rlpd"
    assert worker.config.away.actor == "pick"
    assert worker.config.away.images == "zstd"
    assert worker.config.away.link.name == "local", "it asks as its robots' host"
    assert worker.config.away.link.policies == {"pick": "127.0.0.1:7010"}
    assert "policy-pick" in edge.spec.after, "no robot moves before its policy serves"
    assert all(robot.remote for robot in edge.config.robots)
    assert "at the head" in worker.what


def test_an_actor_beside_its_robots_needs_nothing_of_it(tmp_path):
    found = by_name(composer(tmp_path).processes())
    assert "policy-pick" not in found
    assert found["worker-local-pick"].config.away is None
    assert not any(robot.remote for robot in found["edge-local"].config.robots)


def test_what_the_manifest_says_reaches_the_robot(tmp_path):
    settings = (HEAD, "actors.pick.images=jpeg", "actors.pick.help_after=7s")
    found = by_name(composer(tmp_path, *settings).processes())
    assert found["worker-local-pick"].config.away.images == "jpeg"
    assert _robot(found["edge-local"].config.robots[0]).session.starved_ms == 7000.0


def test_a_robot_host_of_its_own_is_told_the_way(tmp_path):
    manifest = load_manifest(DEMO, [HEAD])
    manifest = replace(
        manifest,
        hosts={"local": HostEntry(remote=True)},
        tunnel=replace(manifest.tunnel, listen="0.0.0.0", host="head.example"),
    )
    made = Composer(manifest, RunDir(tmp_path / "run", tmp_path), PORTS, cores=(0, 1))
    document = setup.encode(setup.make("demo", "local", made.remote("local")))
    placed = setup.place(setup.decode(document), RunDir(tmp_path / "there", tmp_path / "s"))
    (worker,) = [text for path, text in placed.configs.items() if "worker" in path.name]
    assert "head.example:7010" in worker
    assert str(tmp_path / "there" / "pki") in worker


def test_the_policy_has_credentials_of_its_own(tmp_path):
    enrol.make_pki(tmp_path, load_manifest(DEMO, [HEAD]))
    mine = Credentials.load(tmp_path, "policy-pick")
    assert subject(parse(mine.certificate)).role is Role.SERVICE


def test_more_gpus_than_there_are_is_named():
    manifest = load_manifest(DEMO, [HEAD, "actors.pick.gpus=2", "learners.rlpd.gpus=1"])
    problems = Problems()
    machine.check(manifest, machine.Machine(tuple(range(8)), 2, 1 << 40), problems)
    assert any("learners.*.gpus" in line for line in problems.lines)
    problems = Problems()
    machine.check(manifest, machine.Machine(tuple(range(8)), 1, 1 << 40), problems)
    assert any("actors.*.gpus" in line for line in problems.lines)


def test_gpus_are_given_away_once():
    manifest = load_manifest(DEMO, [HEAD, "actors.pick.gpus=2"])
    assert away.gpus(manifest, 3) == {"pick": [2, 1]}
    assert away.gpus(manifest, 1) == {"pick": [0]}


def test_an_unknown_place_is_refused():
    with pytest.raises(ConfigError, match=r"actors.pick.where.*edge.*head"):
        load_manifest(DEMO, ["actors.pick.where=cloud"])


def test_ports_of_policies_are_chosen_with_the_others():
    problems = Problems()
    chosen = ports.choose(load_manifest(DEMO, [HEAD, "teleop.port=0"]), problems)
    assert not problems.lines
    assert chosen.policies["pick"] not in {0, chosen.hub, chosen.replay, chosen.fresh}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        manifest = load_manifest(DEMO, [HEAD, "teleop.port=0", f"actors.pick.port={port}"])
        ports.choose(manifest, problems)
    assert any("actors.pick.port" in line for line in problems.lines)


# --- the process ----------------------------------------------------------------------------------


class Nowhere:
    def fetch(self, policy, version=0):
        raise LinkError("not here")


@pytest.fixture
def policies(tmp_path):
    made = composer(tmp_path, HEAD, "actors.pick.hang=200ms")
    config = by_name(made.processes())["policy-pick"].config
    return policy_host.Policies(config, Nowhere())


def test_each_robot_has_a_policy_of_its_own_and_all_have_the_newest_weights(policies, monkeypatch):
    found = []
    monkeypatch.setattr(policy_host.PolicyDesk, "found", lambda desk, ready: found.append(ready))
    policies.desk("arm-1")
    policies._ready("rlpd", WeightsReady(3, "three", 0.0))
    policies._ready("rlpd", WeightsReady(2, "two", 0.0))  # an evaluation's
    policies.desk("arm-2")
    assert [ready.version for ready in found] == [3, 2, 3]
    assert {"arm-1_plans", "arm-2_plans"} <= policies.figures().keys()


def test_a_policy_that_hangs_is_named_to_its_robot_before_the_process_ends(policies, monkeypatch):
    deadline = time.monotonic() + 60.0
    told = []
    desk = policies.desk("arm-1")
    desk._planner._mind.act = lambda mode: time.sleep(1.0) or Plan(np.zeros((1, 4), np.float32))
    monkeypatch.setattr(desk, "failed", told.append)
    desk._planner.ask(0, "explore")
    while desk.busy_s <= 0.2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(PluginError, match="hangs, silent for"):
        policies.figures()
    assert "'rlpd' at the head hangs" in told[0]
    assert "restarted" in told[0]


# --- the robot host -------------------------------------------------------------------------------


def test_weights_of_a_policy_at_the_head_are_not_fetched():
    class Weights:
        def __init__(self):
            self.calls = []

        def announce(self, *news):
            self.calls.append(news)

        def need(self, *news):
            self.calls.append(news)

    uplink = Uplink.__new__(Uplink)
    uplink._away, uplink._weights = frozenset({"deep"}), Weights()
    uplink._entries = {n: Entry(n, None, "t", p) for n, p in (("arm", "deep"), ("leg", "rlpd"))}
    uplink.need("arm", 3)
    uplink.need("leg", 4)
    assert uplink._weights.calls == [("rlpd", 4)]


# --- the way there --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "seen"),
    [("direct", "head.example:7010"), ("wireguard", "10.86.0.1:7010"), ("ssh", "127.0.0.1:7010")],
)
def test_each_kind_of_tunnel_leads_to_policies(tmp_path, kind, seen):
    near = Endpoints(policies={"pick": "127.0.0.1:7010"})
    entry = TunnelEntry(kind=kind, listen="127.0.0.1", host="head.example")
    assert tunnels.seen(entry, near).policies == {"pick": seen}


def test_sshd_lets_robot_hosts_through_to_policies(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(tunnels.admission, "publish", lambda *offer: told.append(offer))
    near = Endpoints(policies={"pick": "127.0.0.1:7010"})
    tunnels.publish(tmp_path, TunnelEntry(kind="direct"), near)
    assert "127.0.0.1:7010" in told[0][3]


def test_ssh_forwards_to_policies_on_its_urgent_connection(tmp_path, monkeypatch):
    made = {}
    monkeypatch.setattr(
        tunnel_ssh, "_client", lambda name, to, pki, forwards: made.setdefault(name, forwards)
    )
    enrol.make_pki(tmp_path, load_manifest(DEMO))
    near = Endpoints(policies={"pick": "127.0.0.1:7010"})
    tunnel_ssh.SshTunnel(near, Credentials.load(tmp_path, "local"), None, tmp_path)
    names = {path.name: at for path, at in made["urgent"].items()}
    assert names["policy-pick"] == "127.0.0.1:7010", "a colon would end the socket's name"
    assert not {path.name for path in made["bulk"]} & names.keys()
