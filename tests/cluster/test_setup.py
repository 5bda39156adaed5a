"""What a remote host is told: names and values, never a program or a file of that host."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import user_system
from user_system.cluster import configs, permits, setup, up
from user_system.cluster.compose import Composer
from user_system.cluster.layout import RunDir
from user_system.cluster.manifest import load_manifest
from user_system.cluster.parse import dump, read_json
from user_system.cluster.ports import Ports
from user_system.core.errors import ConfigError

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
PORTS = Ports(hub=7001, fresh=7002, replay=7003, page=7004, ray=7005, ray_client=7006, reader=7007)
REMOTE = ("robots.arm-2.host=lab-2", "hosts.lab-2.remote=true")


def composer(tmp_path: Path, *settings: str) -> Composer:
    manifest = load_manifest(DEMO, (*REMOTE, *settings))
    return Composer(manifest, RunDir(tmp_path / "run", tmp_path / "s"), PORTS, cores=(0, 1))


def made(tmp_path: Path, *settings: str) -> setup.HostSetup:
    return setup.make("demo", "lab-2", composer(tmp_path, *settings).remote("lab-2"))


def here(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "lab-2", tmp_path / "short")


def names(processes) -> set[str]:
    return {process.spec.name for process in processes}


def test_up_starts_nothing_of_a_remote_host_but_what_stands_for_it(tmp_path) -> None:
    found = composer(tmp_path)
    started = names(found.processes())
    assert {"edge-local", "world-arm-1", "resources-local", "resources-lab-2"} <= started
    assert not {name for name in started if "arm-2" in name} | (started & {"edge-lab-2"})
    assert names(found.remote("lab-2")) == {"edge-lab-2", "world-arm-2"}


def test_the_host_runs_what_up_would_have_started(tmp_path) -> None:
    """But for paths, address of the head, and what it cannot wait for: the same configs."""
    near = Composer(
        load_manifest(DEMO, ("robots.arm-2.host=lab-2",)),
        RunDir(tmp_path / "lab-2", tmp_path / "short"), PORTS, cores=(0, 1),
    )  # fmt: skip
    placed = setup.place(setup.decode(setup.encode(made(tmp_path))), here(tmp_path))
    by_name = {p.spec.name: p for p in near.processes()}
    assert [spec.name for spec in placed.specs] == ["world-arm-2", "edge-lab-2"]
    for spec in placed.specs:
        composed = by_name[spec.name]
        for process in (composed, *composed.children):
            told = json.loads(placed.configs[Path(process.spec.argv[3])])
            # The weight store's disk is another machine's.
            alike = dump(process.config) | ({"shelf": None} if "shelf" in told else {})
            assert told == alike, process.spec.name
        assert spec.argv == composed.spec.argv
        assert (spec.stage, spec.nice, spec.cores) == (composed.spec.stage, composed.spec.nice, ())
    assert placed.specs[1].after == ("world-arm-2",)
    assert placed.agents == ("edge-lab-2",)
    assert placed.robots == ("arm-2",)


def test_placed_configs_are_read_back(tmp_path) -> None:
    placed = setup.place(made(tmp_path), here(tmp_path))
    for path, text in placed.configs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    config = read_json(tmp_path / "lab-2" / "config" / "edge-lab-2.json", configs.EdgeHostConfig)
    assert config.link.pki == tmp_path / "lab-2" / "pki"
    assert config.directory == tmp_path / "lab-2" / "edge" / "lab-2"
    assert config.robots[0].driver == here(tmp_path).sockets / "d-arm-2"


def test_a_remote_host_dials_the_name_that_it_knows_the_head_by(tmp_path) -> None:
    way = ("tunnel.listen=0.0.0.0", "tunnel.host=head.lab.example")
    found = composer(tmp_path, *way)
    assert found.remote("lab-2")[-1].config.link.hub == "head.lab.example:7001"
    assert found.join_facts.hub == "head.lab.example:7001"
    assert found.join_facts.page == "https://head.lab.example:7004"
    near = {process.spec.name: process.config for process in found.processes()}
    assert near["edge-local"].link.hub == "127.0.0.1:7001"
    for name in ("hub", "replay"):
        assert near[name].listen == "0.0.0.0"
    assert near["hub"].join_facts == found.join_facts


def test_sockets_of_a_deep_directory_are_short(tmp_path) -> None:
    deep = RunDir(tmp_path / ("x" * 90), Path("/tmp/short"))
    placed = setup.place(made(tmp_path), deep)
    world = json.loads(placed.configs[deep.config / "world-arm-2.json"])
    assert world["socket"] == "/tmp/short/sock/w-arm-2"


def test_the_hub_finds_one_file_per_remote_host(tmp_path) -> None:
    found = composer(tmp_path)
    (tmp_path / "run" / "config").mkdir(parents=True)
    up.write_setups(found)
    (path,) = found.run.setups.iterdir()
    assert path.name == "lab-2.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert setup.decode(path.read_bytes()) == json_like(made(tmp_path))
    up.write_setups(replace(found, manifest=load_manifest(DEMO)))
    assert list(found.run.setups.iterdir()) == [], "nothing of an earlier start is served"


def json_like(found: setup.HostSetup) -> setup.HostSetup:
    return replace(found, configs=json.loads(json.dumps(dump(found.configs))))


def tampered(tmp_path: Path, change) -> bytes:
    plain = json.loads(setup.encode(made(tmp_path)))
    change(plain)
    return json.dumps(plain).encode()


def edge(plain: dict) -> dict:
    return plain["configs"]["edge-lab-2"]


BAD = {
    "another program": (
        lambda p: p["processes"][0].update(kind="ray_node"), "no robot host runs",
    ),
    "another file": (
        lambda p: p["processes"][0].update(name="../../etc/cron"), "no robot host runs",
    ),
    "an absolute path": (lambda p: edge(p).update(directory="/etc"), "not the robot host's"),
    "a way out": (lambda p: edge(p).update(directory="edge/../../x"), "not the robot host's"),
    "its very directory": (lambda p: edge(p).update(directory="."), "not the robot host's"),
    "a way out within": (
        lambda p: edge(p)["robots"][0].update(driver="sock/../../../d"), "not the robot host's",
    ),
    "weights of another place": (
        lambda p: edge(p)["robots"][0].update(policy="../../../etc/cron.d"), "cannot name a file",
    ),
    "a spool of another place": (
        lambda p: edge(p)["robots"][0].update(name="../../../root/x"), "cannot name a file",
    ),
    "another's credentials": (
        lambda p: edge(p)["link"].update(name="../../lab-3/pki/lab-3"), "cannot name a file",
    ),
    "a process that waits for none": (
        lambda p: p["processes"][0].update(after=["nobody"]), "can never start",
    ),
    "processes that wait for each other": (
        lambda p: [q.update(after=["edge-lab-2"]) for q in p["processes"] if q["kind"] == "world"],
        "can never start",
    ),
    "a process twice": (lambda p: p["processes"].append(p["processes"][0]), "twice"),
    "keys of another place": (
        lambda p: edge(p)["link"].update(pki="/root/.ssh"), "not the robot host's",
    ),
    "a child that it does not list": (
        lambda p: edge(p)["children"][0].update(name="else"), "a child that it does not list",
    ),
    "a child that is no child": (
        lambda p: [q.update(kind="edge") for q in p["processes"] if q["parent"]],
        "does not list|wrong type|missing",
    ),
    "a config that is none": (lambda p: p["configs"].update({"edge-lab-2": [1]}), "wrong type"),
    "no config": (lambda p: p["configs"].pop("edge-lab-2"), "missing"),
    "an unknown field": (lambda p: edge(p).update(more=1), "unknown key"),
}  # fmt: skip


def with_settings(tmp_path: Path, **settings: object) -> bytes:
    """Return a setup in which those of the driver say something else."""

    def change(plain: dict) -> None:
        (driver,) = [name for name in plain["configs"] if name.startswith("driver")]
        plain["configs"][driver]["plugin"]["config"].update(settings)

    return tampered(tmp_path, change)


REACHING = [
    "/etc/passwd", "../pki/lab-2.pem", "pki/lab-2.pem", "..", "~/.ssh/id_rsa", "$HOME", ".netrc",
    "C:\\x", "file:///etc/passwd", "https://evil.example/w.pt", "a\0b",
    "os:system", "package.module:Env-v0", "antigravity:Id",
]  # fmt: skip


@pytest.mark.parametrize("text", REACHING)
@pytest.mark.parametrize("within", [lambda t: t, lambda t: [[1], {"a": [t]}], lambda t: {t: 1}])
def test_settings_of_plugins_name_nothing_of_the_host(tmp_path, text, within) -> None:
    """What a plugin makes of them is not ours to know: it may import what it is told to."""
    document = with_settings(tmp_path, more=within(text))
    with pytest.raises(ConfigError, match=r"'sim.franka' of driver-arm-2 name a file.*'permitted'"):
        setup.place(setup.decode(document), here(tmp_path))
    setup.place(setup.decode(document), here(tmp_path), {text})
    with pytest.raises(ConfigError):
        setup.place(setup.decode(document), here(tmp_path), {text + "x"})


@pytest.mark.parametrize("kind", ["task", "learner", "robot"])
def test_nor_do_those_of_any_other_plugin(tmp_path, kind) -> None:
    def change(plain: dict) -> None:
        (worker,) = [c for name, c in plain["configs"].items() if name.startswith("worker")]
        seat = worker["seats"][0]
        told = {"task": seat["task"], "learner": worker["learner"], "robot": seat["plugin"]}[kind]
        told["config"] = {"more": "/etc/passwd"}

    with pytest.raises(ConfigError, match=r"of worker-lab-2-pick name a file"):
        setup.place(setup.decode(tampered(tmp_path, change)), here(tmp_path))


@pytest.mark.parametrize(
    "text", ["cartesian", "192.168.1.5:8080", "head.lab:7003", "a.b-c_d", "x, y", "", "Pendulum-v1"]
)
def test_settings_of_plugins_name_everything_else(tmp_path, text) -> None:
    setup.place(setup.decode(with_settings(tmp_path, more=text)), here(tmp_path))


def test_what_the_owner_of_a_host_permits(tmp_path) -> None:
    assert permits.read(tmp_path) == frozenset()
    lines = "# the gripper\n/dev/ttyUSB0\n\n  pkg.mod:Env-v0  \n#/etc/passwd\n"
    (tmp_path / "permitted").write_text(lines)
    assert permits.read(tmp_path) == {"/dev/ttyUSB0", "pkg.mod:Env-v0"}
    (tmp_path / "permitted").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        permits.read(tmp_path)


@pytest.mark.parametrize("levels", [65, 500, 5000])
@pytest.mark.parametrize("ends", ["[]", ('{"a":', "}")])
def test_a_setup_is_not_nested_without_end(tmp_path, levels, ends) -> None:
    """A robot host that reads one would end, with all that runs there."""
    nested = ends[0] * levels + "1" + ends[1] * levels
    text = with_settings(tmp_path, more="@@").decode().replace('"@@"', nested)
    with pytest.raises(ConfigError, match=r"nested too deeply|not JSON"):
        setup.decode(text.encode())


@pytest.mark.parametrize("what", BAD)
def test_a_setup_that_wants_too_much_is_refused(tmp_path, what) -> None:
    change, says = BAD[what]
    with pytest.raises(ConfigError, match=says):
        setup.place(setup.decode(tampered(tmp_path, change)), here(tmp_path))


def test_a_child_is_the_module_that_its_kind_says(tmp_path) -> None:
    """Whatever the document says of it: what runs is ours."""

    def change(plain: dict) -> None:
        for child in edge(plain)["children"]:
            child.update(module="http.server", config="sock/evil.json")

    placed = setup.place(setup.decode(tampered(tmp_path, change)), here(tmp_path))
    told = json.loads(placed.configs[tmp_path / "lab-2" / "config" / "edge-lab-2.json"])
    assert [(c["module"], Path(c["config"]).name) for c in told["children"]] == [
        ("user_system.cluster.driver_host", "driver-arm-2.json"),
        ("user_system.cluster.worker_host", "worker-lab-2-pick.json"),
    ]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"", "not JSON"), (b"[]", "no object"), (b"{}", "names no version"),
        (b'{"protocol": true}', "names no version"), (b"\xff", "not JSON"),
        (b" " * (setup.MAX_BYTES + 1), "too large"),
        (b'{"protocol": 99, "version": "0.1.0"}', "do not work together"),
        (b'{"protocol": 2, "version": "7.0.0", "sky": "blue"}', "head 7.0.0"),
    ],
)  # fmt: skip
def test_what_is_no_setup_is_refused(document, says) -> None:
    with pytest.raises(ConfigError, match=says):
        setup.decode(document)


def test_what_changed(tmp_path) -> None:
    def placed(*settings: str) -> setup.Placed:
        return setup.place(made(tmp_path, *settings), here(tmp_path))

    before = placed()
    assert placed().changed(before) == set()
    assert placed("replay.spool=1MiB").changed(before) == {"edge-lab-2"}
    assert placed("robots.arm-2.previews=[]").changed(before) == {"edge-lab-2"}, "a child's config"
    assert placed("robots.arm-2.rate=2").changed(before) == {"edge-lab-2", "world-arm-2"}
    more = placed("robots.arm-1.host=lab-2")
    assert more.changed(before) == {"edge-lab-2", "world-arm-1"}
    assert before.changed(more) == {"edge-lab-2", "world-arm-1"}


def test_the_manifest_to_begin_with_is_a_good_one() -> None:
    manifest = load_manifest(DEMO.with_name("lab.yaml"))
    assert (manifest.remote_hosts, manifest.page_secure) == (["lab-1"], True)
    (world, agent) = Composer(manifest, RunDir(Path("/r"), Path("/s")), PORTS, (0,)).remote("lab-1")
    assert (world.remote, agent.config.link.fresh) == (True, "head.lab.example:7002")


def test_the_version_is_the_heads(tmp_path) -> None:
    assert made(tmp_path).version == user_system.__version__
