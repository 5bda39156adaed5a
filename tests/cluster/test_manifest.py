"""Every mistake in a manifest is one line: where, what, got, allowed, nearest."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from user_system.cluster import ports
from user_system.cluster.enrol import make_pki, names_of_head
from user_system.cluster.manifest import EncoderEntry, Manifest, load_manifest
from user_system.cluster.parse import dump, load
from user_system.cluster.tree import Problems
from user_system.core.errors import ConfigError
from user_system.replay.views import parse_views


@dataclass(frozen=True)
class FakeConfig:
    utd: int = field(default=1, metadata={"min": 1, "max": 16})
    table_height_m: float = 0.0
    timeout_ms: int = 50
    cameras: tuple[str, ...] = ()
    layers: tuple[int, int] = (256, 256)
    mode: Literal["joint", "cartesian"] = "cartesian"
    mix: dict[str, float] = field(default_factory=dict)

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(self.mix)

    def __post_init__(self) -> None:
        if self.layers[0] < 1:
            raise ConfigError("layers must be positive", got=self.layers)


KNOWN = {
    "robots": {"sim.franka", "ur"},
    "cameras": {"realsense"},
    "tasks": {"sim.pick_cube"},
    "learners": {"rlpd"},
    "encoders": {"resnet"},
}


def plugins(group: str, kind: str) -> type | None:
    if kind not in KNOWN[group]:
        raise ConfigError(f"no {group} plugin is called {kind!r}", allowed=", ".join(KNOWN[group]))
    return None if group == "tasks" else FakeConfig


GOOD = """\
name: demo
robots:
  arm-1:
    kind: sim.franka
    task: pick
    actor: pick
    rate: 8
tasks:
  pick: {kind: sim.pick_cube}
learners:
  rlpd:
    kind: rlpd
    publish_every: 500ms
    config: {utd: 2, table_height: 10cm, layers: [64, 64]}
actors:
  pick: {learner: rlpd}
"""


def read(tmp_path: Path, text: str, *settings: str) -> Manifest:
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    return load_manifest(path, settings, plugins)


def problems(tmp_path: Path, text: str, *settings: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, *settings)
    return [line.replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()]


def test_a_good_one_becomes_typed_values(tmp_path: Path) -> None:
    manifest = read(tmp_path, GOOD)
    assert manifest.robots["arm-1"].rate == 8.0
    assert manifest.learners["rlpd"].publish_every_s == 0.5
    assert manifest.learners["rlpd"].config == FakeConfig(
        utd=2, table_height_m=0.1, layers=(64, 64)
    )
    assert manifest.robots["arm-1"].config == FakeConfig()
    assert manifest.run == Path("runs/demo")
    assert manifest.edge_hosts == ["local"]
    assert manifest.remote_hosts == []


VIEWED = GOOD.replace(
    "    config: {utd: 2,",
    """\
    views:
      clean: {robots: [arm-1], segments: [AUTO], since: 2026-01-31T12:00:00, until: 2026-03-01}
      either: {any: [{success: true}, {segments: [DEMO]}]}
    encoders: {front: {kind: resnet, config: {utd: 3}}}
    cache: 1GiB
    config: {mix: {clean: 0.5, demos: 0.5}, utd: 2,""",
)


def test_views_encoders_and_cache_of_a_learner(tmp_path: Path) -> None:
    entry = read(tmp_path, VIEWED).learners["rlpd"]
    assert entry.cache_bytes == 2**30
    assert entry.encoders["front"] == EncoderEntry("resnet", FakeConfig(utd=3))
    assert set(entry.views) == {"clean", "either"}
    # What a process is told of them is JSON, and means the same.
    told = json.loads(json.dumps(dump(entry.views)))
    assert parse_views(told) == parse_views(entry.views)
    assert parse_views(told)["clean"].since == 1769860800 * 10**9


def test_command_line_overrides(tmp_path: Path) -> None:
    manifest = read(
        tmp_path, GOOD, "learners.rlpd.config.utd=4", "robots.arm-1.rate=1", "schedule.demos=3"
    )
    assert manifest.learners["rlpd"].config.utd == 4
    assert manifest.robots["arm-1"].rate == 1.0
    assert manifest.schedule.demos == 3


BAD = [
    ("rate: 8", "rat: 8", "lab.yaml:7: robots.arm-1.rat: unknown key; got 'rat'; allowed: actor, "
     "cameras, config, host, kind, previews, rate, task. Did you mean 'rate'?"),
    ("rate: 8", "rate: fast",
     "lab.yaml:7: robots.arm-1.rate: wrong type; got 'fast'; allowed: a number"),
    ("rate: 8", "rate: 0",
     "lab.yaml:7: robots.arm-1.rate: out of range; got 0; allowed: more than 0.0"),
    ("rate: 8", "rate: true",
     "lab.yaml:7: robots.arm-1.rate: wrong type; got True; allowed: a number"),
    ("rate: 8", "host: [a]",
     "lab.yaml:7: robots.arm-1.host: wrong type; got a list; allowed: text"),
    ("kind: sim.franka", "kind: sim.franca",
     "lab.yaml:4: robots.arm-1.kind: no robots plugin is called 'sim.franca'; allowed: "),
    ("kind: sim.franka", "kind: ur",
     "lab.yaml:7: robots.arm-1.rate: 'ur' has no clock of its own; got 8; allowed: 1;"),
    ("task: pick", "task: pikc",
     "lab.yaml:5: robots.arm-1.task: not one of the tasks; got 'pikc'; allowed: pick. "
     "Did you mean 'pick'?"),
    ("    actor: pick\n", "", "lab.yaml:4: robots.arm-1.actor: missing"),
    ("learner: rlpd", "learner: sac",
     "lab.yaml:16: actors.pick.learner: not one of the learners; got 'sac'; allowed: rlpd"),
    ("publish_every: 500ms", "publish_every: 2",
     "lab.yaml:13: learners.rlpd.publish_every: wrong type; got 2; allowed: a number with a unit "
     "(ns, us, ms, s, min, h, d), e.g. 2s"),
    ("publish_every: 500ms", "publish_every: 2sec",
     "lab.yaml:13: learners.rlpd.publish_every: wrong type; got '2sec'; allowed: a number with a "
     "unit (ns, us, ms, s, min, h, d), e.g. 2s"),
    ("publish_every: 500ms", "publish_every_s: 2s",
     "lab.yaml:13: learners.rlpd.publish_every_s: unknown key; got 'publish_every_s'"),
    ("utd: 2", "utd: 2.5",
     "lab.yaml:14: learners.rlpd.config.utd: wrong type; got 2.5; allowed: a whole number"),
    ("utd: 2", "utd: 99",
     "lab.yaml:14: learners.rlpd.config.utd: out of range; got 99; allowed: at most 16"),
    ("utd: 2", "uttd: 2", "lab.yaml:14: learners.rlpd.config.uttd: unknown key; got 'uttd'; "
     "allowed: cameras, layers, mix, mode, table_height, timeout, utd. Did you mean 'utd'?"),
    ("utd: 2", "mode: polar",
     "lab.yaml:14: learners.rlpd.config.mode: not one of the choices; got 'polar'; allowed: "
     "cartesian, joint"),
    ("utd: 2", "mix: {online: half}",
     "lab.yaml:14: learners.rlpd.config.mix.online: wrong type; got 'half'; allowed: a number"),
    ("10cm", "10 miles", "lab.yaml:14: learners.rlpd.config.table_height: wrong type; "
     "got '10 miles'; allowed: a number with a unit (mm, cm, m)"),
    ("utd: 2", "timeout: 1us", "lab.yaml:14: learners.rlpd.config.timeout: wrong type; got '1us'; "
     "allowed: a whole number after conversion"),
    ("[64, 64]", "[64]",
     "lab.yaml:14: learners.rlpd.config.layers: wrong type; got a list; allowed: a list of 2"),
    ("[64, 64]", "[0, 64]",
     "lab.yaml:14: learners.rlpd.config: layers must be positive; got (0, 64)"),
    ("{kind: sim.pick_cube}", "{kind: sim.pick_cube, config: {size: 1}}",
     "lab.yaml:9: tasks.pick.config: 'sim.pick_cube' takes no configuration"),
    ("{kind: sim.pick_cube}", "sim.pick_cube",
     "lab.yaml:9: tasks.pick: wrong type; got 'sim.pick_cube'; allowed: a mapping"),
    ("tasks:", "  arm-1: {kind: sim.franka, task: pick, actor: pick}\ntasks:",
     "lab.yaml:8: arm-1: given twice; got a first one at lab.yaml:3"),
    ("  arm-1:", "  arm 1!:", "lab.yaml:4: robots.arm 1!: not a name; got 'arm 1!'"),
    ("name: demo", "nam: demo", "lab.yaml:1: name: missing"),
    ("name: demo", "name: demo\nteleop: {port: 70000}",
     "lab.yaml:2: teleop.port: out of range; got 70000; allowed: at most 65535"),
    ("name: demo", "name: demo\nreplay: {size: 2GB!}", "lab.yaml:2: replay.size: wrong type"),
    ("name: demo", "name: demo\nreplay: {size: 100}",
     "lab.yaml:2: replay.size: wrong type; got 100; allowed: a number with a unit"),
    ("name: demo", "name: demo\ntunnel: {kind: wiregard}",
     "lab.yaml:2: tunnel.kind: not one of the choices; got 'wiregard'; allowed: direct, ssh, "
     "wireguard. Did you mean 'wireguard'?"),
    ("name: demo", "name: demo\ntunnel: {kind: ssh, ssh: {hostkey: x}}",
     "lab.yaml:2: tunnel.ssh.hostkey: unknown key; got 'hostkey'; allowed: host, host_key, port, "
     "user. Did you mean 'host_key'?"),
    ("name: demo", "name: demo\ntunnel: {kind: ssh, ssh: {host_key: ssh-ed25519 AAAA}}",
     "lab.yaml:2: tunnel.ssh: host_key is no public host key; got 'ssh-ed25519 AAAA'"),
    ("name: demo", "name: demo\ntunnel: {kind: ssh, ssh: {host: -oProxyCommand=x}}",
     "lab.yaml:2: tunnel.ssh: host is no name or address; got '-oProxyCommand=x'"),
    ("name: demo", "name: demo\ntunnel: {kind: ssh, ssh: {user: a b}}",
     "lab.yaml:2: tunnel.ssh: user is no name of an account; got 'a b'"),
    ("name: demo", "name: demo\ntunnel: {ssh: {port: 0}}",
     "lab.yaml:2: tunnel.ssh: port is out of range; got 0"),
    ("name: demo", "name: demo\ntunnel: {kind: wireguard, wireguard: {network: 10.86.0.0/31}}",
     "lab.yaml:2: tunnel.wireguard: network is not a private one with room for some hosts"),
    ("name: demo", "name: demo\ntunnel: {kind: wireguard, wireguard: {interface: a/b}}",
     "lab.yaml:2: tunnel.wireguard: interface is no name of one; got 'a/b'"),
    ("name: demo", "name: demo\nhosts: {local: {remote: true}}\ntunnel: {kind: wireguard}",
     "lab.yaml:1: tunnel.listen: nobody comes out of the WireGuard tunnel there; got 127.0.0.1; "
     "allowed: 10.86.0.1, the head's address inside, or 0.0.0.0"),
    ("name: demo", "name: demo\ntunnel: {kind: wireguard, wireguard: {mtu: 1400}}",
     "lab.yaml:2: tunnel.wireguard.mtu: unknown key; got 'mtu'; allowed: interface, network, port"),
    ("name: demo", "name: demo\nschedule: {eval_pass: 30}",
     "lab.yaml:2: schedule: eval_pass must lie within an evaluation set; got 30; allowed: 1..20"),
    ("name: demo", "name: demo\nschedule: {run: x}", "lab.yaml:2: schedule.run: unknown key"),
    ("name: demo", "name: demo\noperators: {ann: {robots: [arm-9]}}",
     "lab.yaml:2: operators.ann.robots: not one of the robots; got 'arm-9'; allowed: arm-1. "
     "Did you mean 'arm-1'?"),
    ("name: demo", "name: [demo", "lab.yaml:2: not YAML: "),
    ("    kind: rlpd",
     "    kind: rlpd\n    views:\n      ok: {lead: 3}\n      bad: {segment: [AUTO]}",
     "lab.yaml:15: learners.rlpd.views.bad: view 'bad' has an unknown clause; got segment; "
     "allowed: segments, purposes, robots"),
    ("    kind: rlpd", "    kind: rlpd\n    views: {bad: {segments: [AUTOS]}}",
     "lab.yaml:13: learners.rlpd.views.bad: view 'bad', segments; got AUTOS; allowed: some of "),
    ("    kind: rlpd", "    kind: rlpd\n    views: {demos: {robots: [arm-1]}}",
     "lab.yaml:13: learners.rlpd.views.demos: view is built in; got demos; allowed: another name"),
    ("    kind: rlpd", "    kind: rlpd\n    views: {bad: 3}",
     "lab.yaml:13: learners.rlpd.views.bad: view 'bad'; got 3; allowed: clauses"),
    ("    kind: rlpd", "    kind: rlpd\n    views: [demos]",
     "lab.yaml:13: learners.rlpd.views: wrong type; got a list; allowed: a mapping"),
    ("utd: 2", "mix: {demo: 1}", "lab.yaml:12: learners.rlpd: config draws from an unknown view; "
     "got 'demo'; allowed: all, online, demos, human, prior, interventions, auto, eval, rac, "
     "armada, sirius. Did you mean 'demos'?"),
    ("    kind: rlpd", "    kind: rlpd\n    encoders: {front: {kind: resent}}",
     "lab.yaml:13: learners.rlpd.encoders.front.kind: no encoders plugin is called 'resent'; "
     "allowed: resnet"),
    ("    kind: rlpd",
     "    kind: rlpd\n    encoders: {front: {kind: resnet, config: {mod: joint}}}",
     "lab.yaml:13: learners.rlpd.encoders.front.config.mod: unknown key; got 'mod'"),
    ("    kind: rlpd", "    kind: rlpd\n    cache: 5",
     "lab.yaml:13: learners.rlpd.cache: wrong type; got 5; allowed: a number with a unit"),
    ("  pick: {learner: rlpd}", "  pick: {learner: rlpd}\n  idle: {learner: rlpd}",
     "lab.yaml:17: actors.idle: no robot names this actor"),
    ("tasks:", "hosts: {lab-1: {remote: true}}\ntasks:",
     "lab.yaml:8: hosts.lab-1: no robot is wired to this host"),
    ("tasks:", "    host: lab1\nhosts: {lab-1: {remote: true}}\ntasks:",
     "lab.yaml:8: robots.arm-1.host: not one of the hosts; got 'lab1'; allowed: lab-1, local. "
     "Did you mean 'lab-1'?"),
    ("tasks:", "hosts: {local: {remote: true}}\ntasks:",
     "lab.yaml:8: hosts.local: this machine is not remote. Give the other machine a name"),
    ("tasks:", "    host: hub\ntasks:",
     "lab.yaml:8: robots.arm-1.host: a name of the head's own; got 'hub'"),
    ("tasks:", "    host: learner-rlpd\ntasks:",
     "lab.yaml:8: robots.arm-1.host: a name of the head's own; got 'learner-rlpd'"),
    ("tasks:", "    host: a.b\nhosts: {a.b: {}}\ntasks:",
     "lab.yaml:9: hosts.a.b: not a name; got 'a.b'"),
    ("tasks:", "    host: lab-1\nhosts: {lab-1: {remote: yess}}\ntasks:",
     "lab.yaml:9: hosts.lab-1.remote: wrong type; got 'yess'; allowed: true or false"),
    ("tasks:", "tunnel: {listen: head.lab.example}\ntasks:",
     "lab.yaml:8: tunnel: listen: not an IPv4 address; got 'head.lab.example'; allowed: 127.0.0.1, "
     "0.0.0.0 or an address of this machine. The name that robot hosts use belongs into"),
    ("tasks:", "tunnel: {host: 'head:7400'}\ntasks:",
     "lab.yaml:8: tunnel: host: not a name or address; got 'head:7400'; allowed: without a port"),
    ("tasks:", "    host: lab-1\nhosts: {lab-1: {remote: true}}\ntunnel: {listen: 0.0.0.0}\ntasks:",
     "lab.yaml:1: tunnel.host: robot hosts elsewhere cannot reach the head by it; got 127.0.0.1"),
    ("tasks:", "    host: lab-1\nhosts: {lab-1: {remote: true}}\ntunnel: {host: head.lab}\ntasks:",
     "lab.yaml:1: tunnel.listen: nobody reaches head.lab while the head listens on loopback only"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), BAD, ids=[f"{o}->{n}"[:40] for o, n, _ in BAD])
def test_each_mistake_is_one_exact_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new, 1))
    assert any(text.startswith(line) for text in found), found


REMOTE = GOOD.replace("    rate: 8", "    host: lab-1") + "hosts: {lab-1: {remote: true}}\n"
REACHED = REMOTE + "tunnel: {listen: 0.0.0.0, host: head.lab.example}\n"


def test_remote_hosts(tmp_path: Path) -> None:
    manifest = read(tmp_path, REACHED)
    assert manifest.remote_hosts == ["lab-1"]
    assert manifest.is_remote("lab-1")
    assert not manifest.is_remote("local")
    assert (manifest.tunnel.near, manifest.tunnel.exposed) == ("127.0.0.1", True)
    assert read(tmp_path, REACHED, "tunnel.listen=10.0.0.5").tunnel.near == "10.0.0.5"
    assert read(tmp_path, REMOTE, "hosts.lab-1.remote=false").remote_hosts == []


def test_the_page_listens_where_robot_hosts_join(tmp_path: Path) -> None:
    manifest = read(tmp_path, REACHED)
    assert (manifest.page_host, manifest.page_secure) == ("0.0.0.0", True)
    assert manifest.page_names[0] == "head.lab.example"
    apart = read(tmp_path, REACHED, "teleop.host=10.0.0.5")
    assert (apart.page_host, apart.page_names[0]) == ("10.0.0.5", "10.0.0.5")
    here = read(tmp_path, REMOTE)
    assert (here.page_host, here.page_secure) == ("127.0.0.1", True), "an invitation is a secret"
    alone = read(tmp_path, GOOD)
    assert (alone.page_host, alone.page_secure) == ("127.0.0.1", False)


@pytest.mark.parametrize(
    ("kind", "listen"), [("ssh", "127.0.0.1"), ("wireguard", "10.86.0.1"), ("direct", "10.0.0.5")]
)
def test_who_joins_is_not_in_the_tunnel_yet(tmp_path: Path, kind: str, listen: str) -> None:
    way = [f"tunnel.kind={kind}", f"tunnel.listen={listen}"]
    manifest = read(tmp_path, REACHED, *way)
    outside = kind != "direct"
    assert manifest.page_host == ("0.0.0.0" if outside else listen)
    assert (manifest.page_names[0] == "head.lab.example") == outside, "as lines of invitations say"
    assert manifest.page_secure
    assert manifest.tunnel.inside == (kind == "wireguard")
    assert read(tmp_path, REACHED, *way, "teleop.host=127.0.0.1").page_host == "127.0.0.1"
    alone = read(tmp_path, REACHED, *way, "hosts.lab-1.remote=false")
    assert alone.page_host == listen, "nobody joins"


@pytest.mark.parametrize("up", [False, True])
def test_ports_inside_are_looked_for_before_there_is_an_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, up: bool
) -> None:
    asked: dict[str, str] = {}

    def take(held: object, path: str, host: str, port: int, problems: object) -> int:
        asked[path] = host
        return port

    monkeypatch.setattr(ports, "_take", take)
    monkeypatch.setattr(ports.wireguard_link, "is_up", lambda interface: up)
    ports.choose(
        read(tmp_path, REACHED, "tunnel.kind=wireguard", "tunnel.listen=10.86.0.1"), Problems()
    )
    assert (
        asked["tunnel.hub_port"] == asked["tunnel.fresh_port"] == ("10.86.0.1" if up else "0.0.0.0")
    )


def test_the_head_is_known_by_all_its_names(tmp_path: Path) -> None:
    names = names_of_head(read(tmp_path, REACHED))
    assert names == ["localhost", "127.0.0.1", "head.lab.example"]
    names = names_of_head(read(tmp_path, REACHED, "tunnel.listen=10.0.0.5"))
    assert names == ["localhost", "127.0.0.1", "10.0.0.5", "head.lab.example"]
    assert names_of_head(read(tmp_path, GOOD)) == ["localhost", "127.0.0.1"]


def test_keys_of_a_remote_host_are_not_made_here(tmp_path: Path) -> None:
    make_pki(tmp_path / "pki", read(tmp_path, REACHED))
    assert not list((tmp_path / "pki").glob("lab-1.*"))
    assert "lab-1" not in json.loads((tmp_path / "pki" / "allow.json").read_text())
    make_pki(tmp_path / "near", read(tmp_path, REMOTE, "hosts.lab-1.remote=false"))
    assert (tmp_path / "near" / "lab-1.pem").exists()


def test_ports_last_where_robot_hosts_come_back_to_them(tmp_path: Path, monkeypatch) -> None:
    asked: dict[str, tuple[str, int]] = {}

    def take(held: object, path: str, host: str, port: int, problems: object) -> int:
        asked[path] = (host, port)
        return port

    monkeypatch.setattr(ports, "_take", take)
    ports.choose(read(tmp_path, REACHED, "replay.serve=true"), Problems())
    assert [asked[f"tunnel.{name}_port"] for name in ("hub", "replay", "fresh", "reader")] == [
        ("0.0.0.0", port) for port in (7400, 7401, 7402, 7403)
    ]
    assert asked["teleop.port"] == ("0.0.0.0", 8765)
    assert asked["ray.port"] == ("127.0.0.1", 0)
    ports.choose(read(tmp_path, REACHED, "tunnel.hub_port=0", "tunnel.replay_port=9"), Problems())
    assert [asked["tunnel.hub_port"][1], asked["tunnel.replay_port"][1]] == [0, 9]
    ports.choose(read(tmp_path, GOOD), Problems())
    assert asked["tunnel.hub_port"] == ("127.0.0.1", 0), "any free one where all is on one machine"


def test_all_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("rate: 8", "rate: fast").replace("task: pick", "tsk: pick")
    found = problems(tmp_path, text.replace("learner: rlpd", "learner: sac"), "schdule.demos=3")
    places = [re.match(r"[^:]+:?\d*: [\w.-]+", line).group() for line in found]  # type: ignore[union-attr]
    assert places == [
        "--set schdule.demos: schdule",
        "lab.yaml:5: robots.arm-1.tsk",
        "lab.yaml:4: robots.arm-1.task",
        "lab.yaml:7: robots.arm-1.rate",
        "lab.yaml:16: actors.pick.learner",
    ]


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("learners.rlpd.config.utd", "--set: not a setting; got learners.rlpd.config.utd"),
        ("robots.arm-1.rate=slow", "--set robots.arm-1.rate: robots.arm-1.rate: wrong type"),
        ("robots.arm-2.rate=2", "--set robots.arm-2.rate: robots.arm-2.kind: missing"),
    ],
)
def test_bad_settings(tmp_path: Path, setting: str, line: str) -> None:
    found = problems(tmp_path, GOOD, setting)
    assert any(text.startswith(line) for text in found), found


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read; got No such file"):
        load_manifest(tmp_path / "none.yaml")


def test_nothing_in_a_file_makes_python_run(tmp_path: Path) -> None:
    text = GOOD.replace("name: demo", "name: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError):
        read(tmp_path, text)


def test_per_process_files_repeat_exactly() -> None:
    config = FakeConfig(utd=3, table_height_m=0.2, layers=(8, 8), mix={"online": 0.5})
    assert load(FakeConfig, dump(config)) == config


def test_per_process_files_are_strict() -> None:
    with pytest.raises(ConfigError, match="unknown key; got 'utdd'"):
        load(FakeConfig, {"utdd": 1})
