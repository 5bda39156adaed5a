"""Weights: only what changed travels, a break costs nothing, nothing unverified is returned."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from comms.credentials import AllowList, Credentials
from comms.serving import serve
from comms.tunnel import DirectTunnel, Endpoints
from comms.weights import PART, WeightFetcher, WeightPublisher, WeightService
from user_system.codec.weights import weights_hash
from user_system.core.errors import (
    DamageError,
    LinkError,
    MissingError,
    SecurityError,
    SpecError,
    StoreError,
)
from user_system.core.ports import Manifest


@dataclass
class ModelShelf:
    """The weight store as dicts, and as gullible as possible: the fetcher must see everything."""

    tensors: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, list[Manifest]] = field(default_factory=dict)
    uploads: dict[str, tuple[Manifest, dict[str, bytearray]]] = field(default_factory=dict)
    reads: list[tuple[str, int]] = field(default_factory=list)
    break_after: int | None = None

    def offer(self, manifest: Manifest) -> tuple[str, Sequence[str]]:
        upload = f"u{len(self.uploads)}"
        self.uploads[upload] = manifest, {}
        return upload, sorted({row.hash for row in manifest.tensors} - self.tensors.keys())

    def put(self, upload: str, tensor: str, offset: int, total: int, data: bytes) -> None:
        parts = self.uploads[upload][1].setdefault(tensor, bytearray())
        if offset != len(parts):
            raise SpecError("a gap")
        parts += data
        if len(parts) == total:
            self.tensors[tensor] = bytes(parts)

    def commit(self, upload: str) -> int:
        manifest, _ = self.uploads[upload]
        if any(row.hash not in self.tensors for row in manifest.tensors):
            raise SpecError("tensors are still missing")
        kept = self.versions.setdefault(manifest.policy, [])
        if not kept or kept[-1].hash != manifest.hash:
            kept.append(replace(manifest, version=len(kept) + 1))
        return len(kept)

    def get(self, policy: str, version: int) -> Manifest | None:
        kept = self.versions.get(policy, [])
        return kept[version - 1] if kept and version <= len(kept) else None

    def read(self, tensor: str, offset: int, limit: int) -> tuple[bytes, int]:
        if self.break_after is not None:
            if self.break_after == 0:
                raise StoreError("the disk hiccups")
            self.break_after -= 1
        self.reads.append((tensor, offset))
        return self.tensors[tensor][offset : offset + limit], len(self.tensors[tensor])


@pytest.fixture
def shelf() -> ModelShelf:
    return ModelShelf()


@pytest.fixture
def dial(
    shelf: ModelShelf, credentials: Callable[[str], Credentials], allow: AllowList
) -> Iterator[Callable[[str], DirectTunnel]]:
    tunnels = []
    with serve([WeightService(shelf)], credentials=credentials("hub"), allow=allow) as server:

        def dial(name: str) -> DirectTunnel:
            endpoints = Endpoints(hub=f"127.0.0.1:{server.port}")
            tunnels.append(DirectTunnel(endpoints, credentials(name)))
            return tunnels[-1]

        yield dial
        for tunnel in tunnels:
            tunnel.close()


@pytest.fixture
def publisher(dial: Callable[[str], DirectTunnel]) -> WeightPublisher:
    return WeightPublisher(dial("learner"))


@pytest.fixture
def fetcher(dial: Callable[[str], DirectTunnel]) -> WeightFetcher:
    return WeightFetcher(dial("host-1"))


def modules(seed: int = 0, big: int = 100) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return {
        "policy": {
            "a": np.random.default_rng(1).random((3, big), np.float32),
            "b": rng.random(4).astype(np.float16),
            "empty": np.zeros((0, 3), np.float32),
            "scalar": np.array(2, np.int64),
        },
        "encoder": {"b": rng.random(4)},
    }


STATISTICS = {"mean": np.zeros(3, np.float32)}


def assert_same(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for name in left:
        if isinstance(left[name], dict):
            assert_same(left[name], right[name])
        else:
            assert left[name].dtype == right[name].dtype
            np.testing.assert_array_equal(left[name], right[name])


def test_there_and_back(
    shelf: ModelShelf, publisher: WeightPublisher, fetcher: WeightFetcher
) -> None:
    sent = modules(big=PART)  # twelve parts
    version = publisher.publish("p", sent, STATISTICS, bases={"vit": "abc"}, notes={"updates": 3.0})
    assert version == 1
    weights = fetcher.fetch("p")
    assert_same(weights.modules, sent)
    assert_same(weights.statistics, STATISTICS)
    assert (weights.version, dict(weights.bases)) == (1, {"vit": "abc"})
    assert weights.hash == weights_hash(sent, STATISTICS)
    assert shelf.get("p", 1).notes == {"updates": 3.0}  # type: ignore[union-attr]


def test_only_what_changed_travels(publisher: WeightPublisher, fetcher: WeightFetcher) -> None:
    publisher.publish("p", modules(0), STATISTICS)
    fetcher.fetch("p")
    before = publisher.stats()["tensors_sent"], fetcher.stats()["tensors_fetched"]
    assert publisher.publish("p", modules(7), STATISTICS) == 2
    weights = fetcher.fetch("p")
    assert_same(weights.modules, modules(7))
    after = publisher.stats()["tensors_sent"], fetcher.stats()["tensors_fetched"]
    assert (after[0] - before[0], after[1] - before[1]) == (2, 2)


def test_repeating_a_publish_makes_no_second_version(publisher: WeightPublisher) -> None:
    assert publisher.publish("p", modules()) == 1
    assert publisher.publish("p", modules()) == 1
    assert publisher.publish("p", modules(1)) == 2
    assert publisher.publish("p", modules()) == 3, "going back is a new version"


def test_an_older_version_can_be_fetched(
    publisher: WeightPublisher, fetcher: WeightFetcher
) -> None:
    for seed in range(3):
        publisher.publish("p", modules(seed))
    assert_same(fetcher.fetch("p", 2).modules, modules(1))
    assert_same(fetcher.fetch("p").modules, modules(2))
    assert fetcher.manifest("p", 9) is None
    with pytest.raises(MissingError, match="no weights"):
        fetcher.fetch("p", 9)
    with pytest.raises(MissingError):
        fetcher.fetch("other")


def test_a_broken_fetch_goes_on_at_the_byte_where_it_broke(
    shelf: ModelShelf, publisher: WeightPublisher, fetcher: WeightFetcher
) -> None:
    sent = modules(big=PART)
    publisher.publish("p", sent)
    breaks = 0
    while True:
        shelf.break_after = 2  # so it takes many calls
        try:
            weights = fetcher.fetch("p")
            break
        except StoreError:
            breaks += 1
    assert breaks >= 5
    assert_same(weights.modules, sent)
    assert len(shelf.reads) == len(set(shelf.reads)), "a part travelled twice"
    assert fetcher.stats()["resumed"] >= 4
    total = sum(a.nbytes for m in sent.values() for a in m.values())
    assert fetcher.stats()["bytes_fetched"] == total


def corrupt(shelf: ModelShelf, nbytes: int, data: bytes) -> None:
    hash = [h for h, kept in shelf.tensors.items() if len(kept) == nbytes][-1]
    shelf.tensors[hash] = data


def test_other_bytes_than_promised_are_refused(
    shelf: ModelShelf, publisher: WeightPublisher, fetcher: WeightFetcher
) -> None:
    publisher.publish("p", modules())
    good = fetcher.fetch("p")
    publisher.publish("p", modules(1))
    corrupt(shelf, 32, bytes(32))
    for _ in range(2):
        fetcher._have.clear()
        with pytest.raises(DamageError, match="not what its hash says"):
            fetcher.fetch("p")
    assert fetcher.stats()["refused"] == 2
    assert_same(good.modules, modules())


@pytest.mark.parametrize("size", [16, 31, 33, 0])
def test_more_or_fewer_bytes_are_refused(
    size: int, shelf: ModelShelf, publisher: WeightPublisher, fetcher: WeightFetcher
) -> None:
    publisher.publish("p", modules())
    corrupt(shelf, 32, bytes(size))
    with pytest.raises(DamageError, match="wrong order or size"):
        fetcher.fetch("p")


def test_numbers_that_are_none_are_refused(
    publisher: WeightPublisher, fetcher: WeightFetcher
) -> None:
    sent = modules()
    sent["policy"]["b"][0] = np.nan
    publisher.publish("p", sent)
    with pytest.raises(SpecError, match="policy/b is not finite"):
        fetcher.fetch("p")


def test_a_manifest_that_lies_about_its_hash_is_refused(
    shelf: ModelShelf, publisher: WeightPublisher, fetcher: WeightFetcher
) -> None:
    publisher.publish("p", modules())
    shelf.versions["p"][0] = replace(shelf.versions["p"][0], hash="0" * 64)
    with pytest.raises(DamageError, match="hash"):
        fetcher.fetch("p")


def test_weights_of_another_policy_or_version_are_refused(
    shelf: ModelShelf, publisher: WeightPublisher, fetcher: WeightFetcher
) -> None:
    publisher.publish("p", modules())
    shelf.versions["q"] = shelf.versions["p"]
    with pytest.raises(DamageError, match="not those asked for"):
        fetcher.fetch("q")
    shelf.versions["p"].append(shelf.versions["p"][0])
    with pytest.raises(DamageError, match="not those asked for"):
        fetcher.fetch("p", 2)


def test_only_learners_publish(dial: Callable[[str], DirectTunnel]) -> None:
    with pytest.raises(SecurityError, match="may not call"):
        WeightPublisher(dial("host-1")).publish("p", modules())
    with pytest.raises(SecurityError, match="may not call"):
        WeightFetcher(dial("eve")).fetch("p")


def test_what_may_not_travel_is_refused_before_it_does(publisher: WeightPublisher) -> None:
    with pytest.raises(SpecError, match="may not travel"):
        publisher.publish("p", {"m": {"w": np.array([object()])}})
    with pytest.raises(SpecError, match="reserved"):
        publisher.publish("p", {"statistics": {}})


def test_a_store_that_is_not_there(credentials: Callable[[str], Credentials]) -> None:
    tunnel = DirectTunnel(Endpoints(hub="127.0.0.1:1"), credentials("learner"))
    with pytest.raises(LinkError, match="could not publish"):
        WeightPublisher(tunnel).publish("p", modules())
    tunnel.close()
