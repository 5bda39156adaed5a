"""How a learner comes by its window on the replay buffer, and what the reader makes it of."""

from dataclasses import replace
from pathlib import Path

import pytest

from comms.credentials import AllowList, Credentials
from comms.data_client import RemoteData
from comms.data_service import DataService
from comms.data_wire import Opening
from comms.serving import serve
from user_system.cluster import configs, dial, enrol, reader_host
from user_system.cluster.compose import Composer
from user_system.cluster.layout import RunDir
from user_system.cluster.learner_actor import LearnerActor
from user_system.cluster.manifest import load_manifest
from user_system.cluster.ports import Ports
from user_system.core.errors import ConfigError
from user_system.replay.sampler import ReplayData
from user_system.replay.served import ServedData
from user_system.replay.store import Store, reader

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
PORTS = Ports(hub=1, fresh=2, replay=3, page=4, ray=5, ray_client=6, reader=7)


def learner_of(tmp_path: Path, *settings: str) -> configs.LearnerHostConfig:
    manifest = load_manifest(DEMO, settings)
    enrol.make_pki(tmp_path / "run" / "pki", manifest)
    composer = Composer(manifest, RunDir(tmp_path / "run", tmp_path), PORTS, cores=(0, 1))
    found = {process.spec.name: process.config for process in composer.processes()}
    config: configs.LearnerHostConfig = found["learner-rlpd"]
    return config


def test_a_learner_of_the_same_host_maps_the_file(tmp_path: Path) -> None:
    config = learner_of(tmp_path)
    with Store(config.replay).open(create=True):
        pass
    with dial.tunnel(config.link) as way, LearnerActor(config)._window(way) as data:
        assert type(data) is ReplayData
        assert data.count() == 0


def test_a_learner_of_another_host_draws_through_the_reader(tmp_path: Path) -> None:
    config = learner_of(tmp_path, "learners.rlpd.replay=remote", "learners.rlpd.ahead=0")
    with Store(config.replay).open(create=True):
        pass
    pki = config.link.pki
    me = Credentials.load(pki, enrol.READER)
    with reader(config.replay).open() as env:
        service = DataService(lambda opening: reader_host.window(env, opening))
        with serve([service], credentials=me, allow=AllowList(pki)) as server:
            link = replace(config.link, reader=f"127.0.0.1:{server.port}")
            config = replace(config, link=link, replay=tmp_path / "out-of-reach")
            with dial.tunnel(link) as way, LearnerActor(config)._window(way) as data:
                assert type(data) is RemoteData
                assert data.count() == 0


def test_what_a_learner_asks_for_is_what_its_window_is(tmp_path: Path) -> None:
    with Store(tmp_path / "store").open(create=True) as store:
        mine = {"mine": {"robots": ["arm-1"]}}
        opening = Opening(seed=5, schema="s", follow=False, views=mine)
        window = reader_host.window(store.env, opening)
        assert type(window) is ServedData
        assert not window.follow
        assert window.state_dict() == ReplayData(store.env, seed=5, schema="s").state_dict()
        assert window.count("mine") == 0
        with pytest.raises(ConfigError, match="unknown clause"):
            reader_host.window(store.env, Opening(views={"v": {"colour": "red"}}))
