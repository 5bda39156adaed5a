"""From a manifest to processes: everybody is told what concerns them, and nothing else."""

import json
import stat
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from user_system.cluster import configs, plan, resources, setup
from user_system.cluster.compose import Composer
from user_system.cluster.layout import SOCKET_PATH_MAX, RunDir, open_run, set_aside
from user_system.cluster.learner_actor import LearnerActor, check_cameras
from user_system.cluster.manifest import load_manifest
from user_system.cluster.parse import read_json
from user_system.cluster.ports import Ports
from user_system.core import registry
from user_system.core.errors import ConfigError
from user_system.core.helping import HelpConfig
from user_system.core.interfaces import Encoder
from user_system.replay.store import Store

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
PORTS = Ports(hub=7001, fresh=7002, replay=7003, page=7004, ray=7005, ray_client=7006, reader=7007)


def composer(tmp_path: Path, *settings: str, **more) -> Composer:
    run = RunDir(tmp_path / "run", tmp_path / "short")
    manifest = load_manifest(DEMO, settings)
    return Composer(manifest, run, PORTS, cores=(0, 1), **more)


def by_name(processes: list[plan.Process]) -> dict[str, plan.Process]:
    return {process.spec.name: process for process in plan.everything(processes)}


def test_a_learner_out_of_reach_of_the_file_draws_through_a_reader(tmp_path) -> None:
    found = by_name(composer(tmp_path, "learners.rlpd.replay=remote").processes())
    reader, learner = found["replay-reader"], found["learner-rlpd"]
    assert "replay" in reader.spec.after
    assert "replay-reader" in learner.spec.after
    assert (reader.ports, learner.config.link.reader) == ((7007,), "127.0.0.1:7007")
    assert reader.config.directory == found["replay"].config.directory
    assert reader.spec.nice == 10, "behind the robots, like the learner it works for"
    assert "remote" in learner.what, "user-system plan shows it"


def test_nobody_draws_remotely_unless_asked_for(tmp_path) -> None:
    found = by_name(composer(tmp_path).processes())
    assert "replay-reader" not in found
    assert found["learner-rlpd"].config.access == "mmap"
    assert "replay-reader" in by_name(composer(tmp_path, "replay.serve=true").processes())


def test_how_weights_reach_robots_is_said_once_at_their_learner(tmp_path) -> None:
    found = by_name(composer(tmp_path).processes())
    edge, learner = found["edge-local"].config, found["learner-rlpd"].config
    assert [robot.max_weights_age_s for robot in edge.robots] == [None, None]
    assert learner.weights_dtype == "float32"
    # All of it is on one disk.
    assert edge.shelf == learner.shelf == found["hub"].config.directory / "weights"
    old, hold = "learners.rlpd.weights.max_age=30s", "learners.rlpd.weights.on_stale=hold"
    shown = by_name(composer(tmp_path, old).processes())["edge-local"].config
    assert shown.robots[0].max_weights_age_s is None, "it goes on, and is only shown"
    held = by_name(composer(tmp_path, old, hold).processes())["edge-local"].config
    assert held.robots[0].max_weights_age_s == 30.0
    rounded = by_name(composer(tmp_path, "learners.rlpd.weights.dtype=bfloat16").processes())
    assert rounded["learner-rlpd"].config.weights_dtype == "bfloat16"


def test_a_host_behind_a_tunnel_is_not_near(tmp_path) -> None:
    settings = (
        "hosts.lab-1.remote=true",
        "robots.arm-2.host=lab-1",
        "tunnel.listen=192.0.2.1",
        "tunnel.host=192.0.2.1",
    )
    composed = composer(tmp_path, *settings)
    assert composed.of_host("lab-1")[-1].config.shelf is None
    assert composed.of_host("local")[-1].config.shelf is not None


def test_an_own_sshd_is_run_where_robot_hosts_come_through_it(tmp_path) -> None:
    ssh = ("tunnel.kind=ssh", "tunnel.host=192.0.2.1", "tunnel.ssh.port=7404")
    own = (*ssh, "tunnel.ssh.host_key=own")
    far = ("hosts.lab-1.remote=true", "robots.arm-2.host=lab-1")
    found = by_name(composer(tmp_path, *own, *far).processes())["sshd"]
    assert found.config.file == tmp_path / "run" / "pki" / "sshd_config"
    assert "sshd" in by_name(composer(tmp_path, *own, *far, learning=False).processes())
    for settings in (own, (*ssh, *far), (*far, "tunnel.listen=0.0.0.0", "tunnel.host=192.0.2.1")):
        assert "sshd" not in by_name(composer(tmp_path, *settings).processes()), settings


@pytest.mark.parametrize(
    "setting",
    ["max_age=0s", "max_age=-1s", "on_stale=stop", "dtype=float16", "age=3s"],
)
def test_wrong_words_about_weights_are_named(tmp_path, setting) -> None:
    with pytest.raises(ConfigError, match=r"learners\.rlpd\.weights"):
        composer(tmp_path, f"learners.rlpd.weights.{setting}")


def test_what_starts_after_what(tmp_path) -> None:
    found = by_name(composer(tmp_path).processes())
    assert found["hub"].spec.after == ()
    watching = {"hub", "replay", "teleop", "learner-rlpd"}
    assert set(found["edge-local"].spec.after) == watching | {"world-arm-1", "world-arm-2"}
    assert found["resources-local"].spec.after == ("ray",)
    assert found["operator-script"].spec.after == ("teleop",)


def test_judging_waits_for_no_learner(tmp_path) -> None:
    found = by_name(composer(tmp_path, learning=False).processes())
    assert set(found["edge-local"].spec.after) <= found.keys()


def test_cpus_to_spare_are_the_learners(tmp_path) -> None:
    found = by_name(composer(tmp_path).processes())
    cpus = {name: (p.spec.cores, p.spec.spare) for name, p in found.items()}
    assert cpus["edge-local"] == cpus["hub"] == ((0,), (1,))
    assert cpus["learner-rlpd"] == cpus["ray"] == ((1,), ())


def test_who_ends_before_whom(tmp_path) -> None:
    stage = {name: p.spec.stage for name, p in by_name(composer(tmp_path).processes()).items()}
    assert stage["learner-rlpd"] > stage["edge-local"] > stage["world-arm-1"] > stage["replay"]
    assert stage["operator-script"] > stage["edge-local"]


def test_the_learner_reserves_its_robots_and_no_others(tmp_path) -> None:
    found = by_name(composer(tmp_path).processes())
    assert found["learner-rlpd"].config.robots == ("arm-1", "arm-2")
    (shown,) = [a for a in found["resources-local"].spec.argv if a.startswith("--resources=")]
    assert json.loads(shown.removeprefix("--resources=")) == {
        "robot:arm-1": 1.0,
        "robot:arm-2": 1.0,
    }


def test_robots_of_two_hosts_get_an_agent_each(tmp_path) -> None:
    found = by_name(composer(tmp_path, "robots.arm-2.host=bench-2").processes())
    assert [r.name for r in found["edge-local"].config.robots] == ["arm-1"]
    assert [r.name for r in found["edge-bench-2"].config.robots] == ["arm-2"]
    assert found["edge-bench-2"].config.link.name == "bench-2"
    assert {c.name for c in found["edge-bench-2"].config.children} == {
        "driver-arm-2", "worker-bench-2-pick",
    }  # fmt: skip


def test_a_robot_without_a_simulation_has_no_world(tmp_path) -> None:
    made = composer(tmp_path)
    arm = replace(made.manifest.robots["arm-1"], kind="gymnasium", config=None, rate=1.0)
    manifest = replace(made.manifest, robots={"arm-1": arm})
    names = by_name(replace(made, manifest=manifest).processes())
    assert not [name for name in names if name.startswith("world")]
    assert names["driver-arm-1"].config.plugin == configs.PluginConfig("gymnasium", None)


def test_a_driver_finds_its_own_world(tmp_path) -> None:
    found = by_name(composer(tmp_path).processes())
    for robot in ("arm-1", "arm-2"):
        world, driver = found[f"world-{robot}"].config, found[f"driver-{robot}"].config
        assert driver.world == world.socket


def test_an_evaluation_has_neither_learner_nor_ray(tmp_path) -> None:
    names = by_name(composer(tmp_path, learning=False).processes()).keys()
    assert not {name for name in names if name.startswith(("ray", "resources", "learner"))}


def test_configs_come_back_as_they_were_and_only_their_owner_reads_them(tmp_path) -> None:
    processes = composer(tmp_path, secrets={"script": "s3cret"}).processes()
    plan.write_configs(processes)
    for process in plan.everything(processes):
        if process.config is not None:
            path = Path(process.spec.argv[3])
            assert read_json(path, type(process.config)) == process.config
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_secrets_stay_with_those_who_need_them(tmp_path) -> None:
    made = composer(tmp_path, secrets={"script": "s3cret"}, ray_env=resources.environment("t0ken"))
    processes = made.processes()
    plan.write_configs(processes)
    for process in plan.everything(processes):
        words = " ".join(process.spec.argv)
        text = Path(process.spec.argv[3]).read_text() if process.config is not None else ""
        assert "t0ken" not in words + text, "no file or command line shows Ray's token"
        assert ("s3cret" in text) == (process.spec.name == "operator-script")
        speaks_ray = process.spec.name.startswith(("ray", "resources", "learner"))
        assert ("RAY_AUTH_TOKEN" in process.spec.env) == speaks_ray


def test_ray_listens_here_only_and_asks_for_its_token() -> None:
    argv = resources.head_argv(1, 2, 2, 0, 1, Path("/x"))
    assert "--node-ip-address=127.0.0.1" in argv
    assert "--include-dashboard=false" in argv
    assert "--disable-usage-stats" in argv
    assert resources.environment("t")["RAY_AUTH_MODE"] == "token"


def test_rays_token_is_made_once_and_private(tmp_path) -> None:
    token = resources.make_token(tmp_path)
    assert resources.make_token(tmp_path) == token
    assert len(token) == 64
    assert stat.S_IMODE((tmp_path / resources.TOKEN_FILE).stat().st_mode) == 0o600


def test_sockets_move_out_of_a_deep_directory(tmp_path) -> None:
    deep = RunDir(tmp_path / ("x" * SOCKET_PATH_MAX), Path("/tmp/short"))
    assert deep.sockets == Path("/tmp/short/sock")
    assert RunDir(Path("/r"), Path("/tmp/short")).sockets == Path("/r/sock")


def test_an_earlier_run_is_kept(tmp_path) -> None:
    root = tmp_path / "runs" / "demo"
    assert set_aside(root) is None
    for number in (1, 2):
        root.mkdir(parents=True)
        (root / "report.json").write_text(str(number))
        assert set_aside(root) == root.with_name(f"demo.{number}")
        assert not root.exists()
    assert root.with_name("demo.1").joinpath("report.json").read_text() == "1"


def test_a_run_directory_is_private(tmp_path) -> None:
    run = open_run(tmp_path / "lab")
    run.make()
    assert stat.S_IMODE(run.pki.stat().st_mode) == 0o700
    run.short.rmdir()


def test_the_table_shows_children_below_their_parent(tmp_path) -> None:
    rows = plan.rows(composer(tmp_path).processes())
    names = [row[0] for row in rows]
    assert names[names.index("edge-local") + 1] == "  driver-arm-1"
    assert all(len(row) == len(plan.COLUMNS) for row in rows)


def test_what_a_learner_draws_from_reaches_it(tmp_path) -> None:
    found = by_name(
        composer(
            tmp_path,
            "learners.rlpd.views={clean: {intervened: false}}",
            "learners.rlpd.config.mix={clean: 1.0}",
            "learners.rlpd.cache=5MiB",
        ).processes()
    )
    config = found["learner-rlpd"].config
    assert config.views == {"clean": {"intervened": False}}
    assert (config.cache_bytes, config.encoders) == (5 * 2**20, {})
    config.replay.parent.mkdir()
    Store(config.replay).open(create=True).close()
    with LearnerActor(config)._window(None) as data:
        assert data.count("clean") == data.count("demos") == 0
        with pytest.raises(ConfigError, match=r"unknown view; got dirty; .*sirius, clean"):
            data.count("dirty")


class Halves:
    """An encoder as a plugin."""

    config_type = HelpConfig
    hash = "halves"

    def __init__(self, config):
        self.config = config

    def encode(self, images):
        return images[:, ::2].astype(np.float32)


def test_encoders_are_plugins(monkeypatch) -> None:
    points = [EntryPoint("halves", f"{__name__}:Halves", "user_system.encoders")]
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Halves.__module__])
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    made = configs.make_encoder(configs.PluginConfig("halves", {"patience": 4}))
    assert isinstance(made, Encoder)
    assert made.config == HelpConfig(patience=4)
    with pytest.raises(ConfigError, match=r"no encoders plugin is called 'thirds'.*halves"):
        configs.make_encoder(configs.PluginConfig("thirds"))


def test_an_encoder_needs_a_camera_that_is_recorded(tmp_path) -> None:
    config = by_name(composer(tmp_path).processes())["learner-rlpd"].config
    config = replace(config, encoders={"front": configs.PluginConfig("any")})
    with pytest.raises(ConfigError, match="records no such camera; got front; allowed: none"):
        check_cameras(config, configs.robot_spec(config.robot))


def test_a_host_with_a_replay_of_its_own_keeps_what_its_robots_record(tmp_path) -> None:
    settings = ("robots.arm-2.host=lab-2", "hosts.lab-2.replay=true", "learners.rlpd.nice=7")
    made = composer(tmp_path, *settings)
    found = by_name(made.processes())
    shard, offer, edge = found["shard-lab-2"], found["offer-lab-2"], found["edge-lab-2"]
    assert shard.spec.name in edge.spec.after
    assert shard.spec.name in offer.spec.after
    assert edge.config.shard == shard.config.shard
    assert edge.config.shard.host == "lab-2"
    assert shard.config.directory == offer.config.directory == tmp_path / "run/edge/lab-2/replay"
    assert offer.spec.nice == 7
    assert not shard.ports, "nothing listens but a unix socket"
    assert found["edge-local"].config.shard is None
    learner = found["learner-rlpd"]
    assert learner.config.shards == ("", "lab-2")
    assert "replay-reader" in learner.spec.after, "it passes learners on to the shard"


def test_a_learner_whose_robots_all_have_a_shard_asks_nobody_else(tmp_path) -> None:
    found = by_name(composer(tmp_path, "hosts.local.replay=true").processes())
    assert found["learner-rlpd"].config.shards == ("local",)
    assert by_name(composer(tmp_path).processes())["learner-rlpd"].config.shards == ("",)


def test_a_remote_host_is_told_of_its_shard(tmp_path) -> None:
    hosts = ("robots.arm-2.host=lab-2", "hosts.lab-2.remote=true", "hosts.lab-2.replay=true")
    made = composer(tmp_path, *hosts)
    names = [process.spec.name for process in made.remote("lab-2")]
    assert {"shard-lab-2", "offer-lab-2"} < set(names)
    document = setup.encode(setup.make("demo", "lab-2", made.remote("lab-2")))
    placed = setup.place(setup.decode(document), RunDir(tmp_path / "there", tmp_path / "s"))
    config = json.loads(placed.configs[tmp_path / "there/config/shard-lab-2.json"])
    assert config["directory"] == str(tmp_path / "there/edge/lab-2/replay")
    assert config["shard"]["pki"] == str(tmp_path / "there/edge/lab-2/pki")
