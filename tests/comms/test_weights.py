"""Weights: only what changed travels, a break costs nothing, nothing but what was asked for."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from comms.credentials import AllowList, Credentials
from comms.pb import weights_pb2 as pb
from comms.serving import serve
from comms.tunnel import DirectTunnel, Endpoints
from comms.weight_publisher import PART, WeightPublisher
from comms.weight_puller import Wanted, WeightPuller
from comms.weight_sender import MAX_PIECE
from comms.weight_service import WeightService
from comms.weight_stream import MOST_WAITING, Inbox
from comms.weight_transfer import Transfer
from comms.weights import list_versions, roll_back
from comms.wire_specs import manifest_to_proto
from user_system.codec import deltas
from user_system.codec.arrays import checked_size
from user_system.codec.weights import weights_hash
from user_system.core.errors import (
    ConfigError,
    DamageError,
    LinkError,
    MissingError,
    SecurityError,
    SpecError,
)
from user_system.core.ports import Manifest, Near, Version


@dataclass
class ModelShelf:
    """The weight store as dicts, and as gullible as possible."""

    tensors: dict[str, bytes] = field(default_factory=dict)
    kept: dict[str, list[Manifest]] = field(default_factory=dict)
    uploads: dict[str, tuple[Manifest, dict[str, bytearray]]] = field(default_factory=dict)
    watchers: list[Callable[[], None]] = field(default_factory=list)
    puts: int = 0

    def offer(self, manifest: Manifest) -> tuple[str, Sequence[str]]:
        upload = manifest.hash
        self.uploads.setdefault(upload, (manifest, {}))
        return upload, self.missing(upload)

    def missing(self, upload: str) -> Sequence[str]:
        return sorted({row.hash for row in self.uploads[upload][0].tensors} - self.tensors.keys())

    def put(self, upload: str, tensor: str, offset: int, total: int, data: Any) -> None:
        self.puts += 1
        parts = self.uploads[upload][1].setdefault(tensor, bytearray())
        if offset != len(parts):
            raise SpecError("a gap")
        parts += data
        if len(parts) == total:
            self.tensors[tensor] = bytes(parts)

    def adopt(self, upload: str, file: str) -> None:
        raise SpecError("no file with tensors", got=file)

    def commit(self, upload: str) -> int:
        manifest, _ = self.uploads.pop(upload)
        kept = self.kept.setdefault(manifest.policy, [])
        if not kept or kept[-1].hash != manifest.hash:
            kept.append(replace(manifest, version=len(kept) + 1))
        for told in self.watchers:
            told()
        return len(kept)

    def get(self, policy: str, version: int) -> Manifest | None:
        kept = self.kept.get(policy, [])
        return kept[version - 1] if kept and version <= len(kept) else None

    def tensor(self, hash: str) -> bytes:
        return self.tensors[hash]

    def near(self, hash: str) -> Near:
        return Near("p/1.bin", 64, 7)

    def age_s(self, policy: str, version: int) -> float:
        return 1.5

    def watch(self, told: Callable[[], None]) -> Callable[[], None]:
        self.watchers.append(told)
        return lambda: self.watchers.remove(told)

    def versions(self, policy: str = "") -> Sequence[Version]:
        return [Version(manifest, 1.5) for manifest in self.kept.get(policy, [])]


@pytest.fixture
def shelf() -> ModelShelf:
    return ModelShelf()


@pytest.fixture
def port(
    shelf: ModelShelf, credentials: Callable[[str], Credentials], allow: AllowList
) -> Iterator[int]:
    def rollback(peer: Any, policy: str, version: int) -> int:
        if version == 9:
            raise ConfigError("no such version")
        return 100 * version

    service = WeightService(shelf, rollback)
    with serve([service], credentials=credentials("hub"), allow=allow) as server:
        yield server.port


@pytest.fixture
def dial(
    port: int, credentials: Callable[[str], Credentials]
) -> Iterator[Callable[[str], DirectTunnel]]:
    tunnels = []

    def dial(name: str, through: int = 0) -> DirectTunnel:
        endpoints = Endpoints(hub=f"127.0.0.1:{through or port}")
        tunnels.append(DirectTunnel(endpoints, credentials(name)))
        return tunnels[-1]

    yield dial
    for tunnel in tunnels:
        tunnel.close()


@pytest.fixture
def publisher(dial: Callable[[str], DirectTunnel]) -> WeightPublisher:
    return WeightPublisher(dial("learner"))


@pytest.fixture
def puller(dial: Callable[[str], DirectTunnel]) -> Iterator[WeightPuller]:
    puller = WeightPuller(dial("host-1"))
    yield puller
    puller.close()


def pull(puller: WeightPuller, **want: Any) -> Transfer:
    transfer = puller.pull(Wanted("p", **want))
    assert transfer is not None
    return transfer


def decoded(transfer: Transfer, body: bytes, held: dict[str, bytes]) -> dict[str, bytes]:
    """Return the tensors of a transfer by name, ``held`` being those of the version held."""
    found, at = {}, 0
    for row, travel in zip(transfer.manifest.tensors, transfer.travels, strict=True):
        size = checked_size(row.dtype, tuple(row.shape))
        name = f"{row.module}/{row.name}"
        if travel.form == "":
            found[name] = held[name]
            continue
        part = body[at : at + travel.size]
        step = np.dtype(row.dtype).itemsize
        found[name] = bytes(deltas.decode(travel.form, part, size, step, held.get(name)))
        at += travel.size
    assert at == len(body)
    return found


def raw(modules: dict[str, dict[str, Any]], statistics: dict[str, Any] | None = None) -> Any:
    named = {**modules, "statistics": statistics or {}}
    return {f"{m}/{n}": a.tobytes() for m, tensors in named.items() for n, a in tensors.items()}


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


def test_there_and_back(
    shelf: ModelShelf, publisher: WeightPublisher, puller: WeightPuller
) -> None:
    sent = modules(big=PART)  # many parts
    version = publisher.publish("p", sent, STATISTICS, bases={"vit": "abc"}, notes={"updates": 3.0})
    assert version == 1
    transfer = pull(puller)
    body = b"".join(transfer)
    assert decoded(transfer, body, {}) == raw(sent, STATISTICS)
    manifest = transfer.manifest
    assert (manifest.version, dict(manifest.bases)) == (1, {"vit": "abc"})
    assert manifest.hash == weights_hash(sent, STATISTICS)
    assert manifest.notes == {"updates": 3.0}
    assert transfer.age_s == 1.5


def test_a_frozen_base_never_travels(
    shelf: ModelShelf, publisher: WeightPublisher, puller: WeightPuller
) -> None:
    publisher.publish("p", modules(), bases={"vit": "f" * 64})
    tensors = sum(a.nbytes for m in modules().values() for a in m.values())
    assert publisher.stats()["bytes_sent"] == tensors
    assert len(b"".join(pull(puller))) == tensors
    assert "f" * 64 not in shelf.tensors


def test_only_what_changed_travels(publisher: WeightPublisher, puller: WeightPuller) -> None:
    publisher.publish("p", modules(0), STATISTICS)
    first = pull(puller)
    held = decoded(first, b"".join(first), {})
    before = publisher.stats()["tensors_sent"]
    assert publisher.publish("p", modules(7), STATISTICS) == 2
    assert publisher.stats()["tensors_sent"] - before == 2
    second = pull(puller, newer_than=1, held=1, held_hash=first.manifest.hash)
    body = b"".join(second)
    assert len(body) == 8 + 32
    assert decoded(second, body, held) == raw(modules(7), STATISTICS)


def test_a_tensor_of_which_little_changed_travels_as_the_change(
    publisher: WeightPublisher, puller: WeightPuller
) -> None:
    old = np.random.default_rng(0).random(10_000).astype(np.float32)
    new = old.copy()
    new[::1000] += 1
    publisher.publish("p", {"m": {"w": old}})
    first = pull(puller)
    held = decoded(first, b"".join(first), {})
    publisher.publish("p", {"m": {"w": new}})
    second = pull(puller, newer_than=1, held=1, held_hash=first.manifest.hash)
    body = b"".join(second)
    assert len(body) < 200
    assert decoded(second, body, held) == {"m/w": new.tobytes()}
    for other in ({"held": 1, "held_hash": "0" * 64}, {"held": 9, "held_hash": "0" * 64}, {}):
        whole = pull(puller, version=2, **other)
        assert len(b"".join(whole)) == new.nbytes, "the store knows no such version"


def test_who_waits_hears_of_the_next_version_at_once(
    publisher: WeightPublisher, puller: WeightPuller
) -> None:
    publisher.publish("p", modules(0))
    assert pull(puller, newer_than=0).manifest.version == 1
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(pull(puller, newer_than=1).manifest.version)
    )
    thread.start()
    publisher.publish("p", modules(1))
    thread.join(10)
    assert found == [2]


def test_who_waits_can_be_woken(puller: WeightPuller) -> None:
    thread = threading.Thread(target=lambda: puller.pull(Wanted("p")))
    thread.start()
    puller.wake()
    thread.join(10)
    assert not thread.is_alive()
    puller.wake()
    assert puller.pull(Wanted("p")) is None, "also who waits later"


def test_a_pin_goes_before_what_was_waited_for(
    publisher: WeightPublisher, puller: WeightPuller
) -> None:
    for seed in range(3):
        publisher.publish("p", modules(seed))
    puller.wake()
    assert puller.pull(Wanted("p", newer_than=3)) is None
    thread = threading.Timer(0.2, puller.wake)
    thread.start()
    assert puller.pull(Wanted("p", newer_than=3)) is None
    second = pull(puller, version=2)
    assert decoded(second, b"".join(second), {}) == raw(modules(1))
    with pytest.raises(MissingError, match="no weights"):
        puller.pull(Wanted("p", version=9))
    assert pull(puller, newer_than=2).manifest.version == 3, "the stream is as good as before"


def test_a_transfer_that_was_left_does_not_disturb_the_next(
    publisher: WeightPublisher, puller: WeightPuller
) -> None:
    sent = modules(big=4 * PART)
    publisher.publish("p", sent)
    for _ in range(3):
        for _ in pull(puller):
            break
    transfer = pull(puller)
    assert decoded(transfer, b"".join(transfer), {}) == raw(sent)


class Cap:
    """A budget of a link: so many bytes under way, in pieces of so many."""

    def __init__(self, most: int, piece: int):
        self.most, self.piece = most, piece
        self.open: dict[int, int] = {}
        self.worst = self.done_count = self.lost_count = 0
        self._next = 0

    def chunk(self) -> int:
        return self.piece

    def take(self, size: int, timeout_s: float) -> int | None:
        if self.open and sum(self.open.values()) + size > self.most:
            return None
        self._next += 1
        self.open[self._next] = size
        self.worst = max(self.worst, sum(self.open.values()))
        return self._next

    def done(self, ticket: int) -> None:
        del self.open[ticket]
        self.done_count += 1

    def lost(self, ticket: int) -> None:
        del self.open[ticket]
        self.lost_count += 1


def test_no_more_is_under_way_than_the_link_may_carry(
    publisher: WeightPublisher, dial: Callable[[str], DirectTunnel]
) -> None:
    sent = modules(big=PART)
    publisher.publish("p", sent)
    cap = Cap(200_000, 48_000)
    puller = WeightPuller(dial("host-1"), budget=cap)
    transfer = pull(puller)
    pieces = list(transfer)
    assert decoded(transfer, b"".join(pieces), {}) == raw(sent)
    assert max(map(len, pieces)) <= 48_000
    assert 100_000 < cap.worst <= 200_000
    assert (len(cap.open), cap.done_count, cap.lost_count) == (0, len(pieces), 0)
    puller.close()


def test_a_cut_transfer_goes_on_at_the_byte_where_it_was_cut(
    publisher: WeightPublisher, dial: Any, cutter: Any, port: int, shelf: ModelShelf
) -> None:
    """Cut again and again, by pullers that know nothing of each other but what is there."""
    cutter.target = port
    sent = modules(big=2 * PART)
    publisher.publish("p", sent)
    got, body, cuts = b"", "", 0
    cap = Cap(300_000, 64_000)
    while True:
        puller = WeightPuller(dial("host-1", through=cutter.port), budget=cap)
        try:
            transfer = pull(puller, body=body, offset=len(got))
            assert (transfer.body == body, transfer.offset) == (cuts > 0, len(got))
            body = transfer.body
            for count, piece in enumerate(transfer):
                got += piece
                if count == 6 and cuts < 3:
                    cuts += 1
                    cutter.cut()
            break
        except LinkError:
            continue
        finally:
            puller.close()
    assert cuts == 3
    # Nothing that had come was sent again: else it would not fit behind what was there.
    assert decoded(transfer, got, {}) == raw(sent)
    assert not cap.open
    assert 0 < cap.lost_count <= 3 * (1 + 300_000 // 64_000)


def test_a_body_that_is_another_one_begins_anew(
    publisher: WeightPublisher, puller: WeightPuller
) -> None:
    publisher.publish("p", modules())
    body = pull(puller).body
    assert pull(puller, body=body, offset=100).offset == 100
    assert pull(puller, body="other", offset=100).offset == 0
    assert pull(puller, body=body, offset=10**9).offset == 0


def test_repeating_a_publish_makes_no_second_version(publisher: WeightPublisher) -> None:
    assert publisher.publish("p", modules()) == 1
    assert publisher.publish("p", modules()) == 1
    assert publisher.publish("p", modules(1)) == 2
    assert publisher.publish("p", modules()) == 3, "going back is a new version"


def test_a_learner_that_is_wrong_about_what_is_there_is_told(
    publisher: WeightPublisher, shelf: ModelShelf, dial: Callable[[str], DirectTunnel]
) -> None:
    publisher.publish("p", modules())
    shelf.tensors.clear()
    assert publisher.publish("p", modules(1)) == 2
    puts = shelf.puts
    other = WeightPublisher(dial("learner"))  # takes all to be lacking
    assert other.publish("p", modules()) == 3
    assert shelf.puts - puts == 2, "what was known was skipped"


def test_a_store_on_another_disk_gets_them_sent(
    dial: Callable[[str], DirectTunnel], tmp_path: Any, shelf: ModelShelf
) -> None:
    (tmp_path / "incoming").mkdir()
    publisher = WeightPublisher(dial("learner"), near=tmp_path)
    assert publisher.publish("p", modules()) == 1
    assert set(shelf.tensors) >= {row.hash for row in shelf.kept["p"][0].tensors}


def test_who_is_near_gets_places(publisher: WeightPublisher, puller: WeightPuller) -> None:
    publisher.publish("p", modules())
    transfer = pull(puller, near=True)
    assert b"".join(transfer) == b""
    assert {travel.form for travel in transfer.travels} == {"near"}
    assert transfer.travels[0].file == "p/1.bin"


def test_answers_to_other_questions_are_refused(
    shelf: ModelShelf, publisher: WeightPublisher, puller: WeightPuller
) -> None:
    publisher.publish("p", modules())
    good = shelf.kept["p"][0]
    for wrong in (replace(good, hash="0" * 64), replace(good, policy="q")):
        shelf.kept["p"][0] = wrong
        with pytest.raises(DamageError):
            puller.pull(Wanted("p"))
    shelf.kept["p"][0] = replace(good, version=7)
    with pytest.raises(DamageError, match="not those asked for"):
        puller.pull(Wanted("p", version=1))
    shelf.kept["p"][0] = good
    assert pull(puller).manifest.version == 1


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_store_that_sends_what_nobody_asked_for_is_held_back() -> None:
    inbox = Inbox()
    sent: list[int] = []

    def flood() -> None:
        for number in range(10 * MOST_WAITING):
            inbox.put(pb.PullEvent(piece=pb.BodyPart(offset=number)))
            sent.append(number)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    wait_until(lambda: len(sent) == MOST_WAITING)
    assert inbox.get(1.0) == pb.PullEvent(piece=pb.BodyPart(offset=0))
    wait_until(lambda: len(sent) == MOST_WAITING + 1)
    inbox.wake()
    assert inbox.get(1.0) is None
    assert len(sent) == MOST_WAITING + 1, "who is woken takes nothing away"
    inbox.end(LinkError("closed"))
    thread.join(60.0)
    assert not thread.is_alive(), "nobody waits for room after the end"
    for number in range(1, MOST_WAITING + 1):
        assert inbox.get(1.0) == pb.PullEvent(piece=pb.BodyPart(offset=number))
    with pytest.raises(LinkError, match="closed"):
        inbox.get(1.0)


def test_an_inbox_says_when_nothing_comes() -> None:
    with pytest.raises(TimeoutError):
        Inbox().get(0.01)


def test_too_much_at_once_is_refused(dial: Callable[[str], DirectTunnel]) -> None:
    from comms.weight_sender import MAX_ASKS
    from comms.weights import stub

    tunnel = dial("host-1")
    for asks in ([MAX_PIECE + 1], [1] * (MAX_ASKS + 1)):
        request = pb.PullRequest(want=pb.Want(policy="p", asks=asks))
        with pytest.raises(Exception, match="too much is asked for"):
            next(stub(tunnel).Pull(iter([request])))


@pytest.mark.parametrize("what", ["many", "large"])
def test_who_asks_and_does_not_read_fills_no_memory(what: str) -> None:
    from comms.weight_sender import MAX_ASKS, MAX_REQUEST, Sender

    taken = []

    def requests() -> Iterator[pb.PullRequest]:
        body = "x" * MAX_REQUEST if what == "large" else ""
        for number in range(10 * MAX_ASKS):
            taken.append(number)
            yield pb.PullRequest(want=pb.Want(policy="p", body=body))

    sender = Sender(None, None, lambda size: None)  # type: ignore[arg-type]  # asked for nothing
    sender.read(requests())
    assert len(taken) <= (2 * MAX_ASKS + 2 if what == "many" else 1)
    last = [sender._inbox.get() for _ in range(sender._inbox.qsize())][-2:]
    assert isinstance(last[0], SpecError)
    assert last[1] is None


@pytest.mark.parametrize("extra", [b"x", b"x" * PART])
def test_more_or_other_bytes_than_announced_are_refused(
    dial: Callable[[str], DirectTunnel], shelf: ModelShelf, extra: bytes
) -> None:
    from comms.weights import stub

    manifest = shelf_manifest({"m": {"w": np.zeros(3, np.float32)}})
    opening = pb.Opening(manifest=manifest_to_proto(manifest), sending=[manifest.tensors[0].hash])
    parts = [pb.PublishPart(opening=opening), pb.PublishPart(data=bytes(12) + extra)]
    with pytest.raises(Exception, match="more bytes"):
        stub(dial("learner")).Publish(iter(parts))
    opening.sending.append("0" * 64)
    with pytest.raises(Exception, match="not offered"):
        stub(dial("learner")).Publish(iter([pb.PublishPart(opening=opening)]))
    with pytest.raises(Exception, match="begins with"):
        stub(dial("learner")).Publish(iter([pb.PublishPart(data=b"x")]))
    assert not shelf.kept


def shelf_manifest(modules: dict[str, dict[str, Any]]) -> Manifest:
    from user_system.codec.weights import entries, entries_hash
    from user_system.core.ports import TensorEntry

    rows = entries(modules)
    return Manifest("p", 0, entries_hash(rows), tuple(TensorEntry(*row) for row in rows))


def test_roles(dial: Callable[[str], DirectTunnel]) -> None:
    with pytest.raises(SecurityError, match="may not call"):
        WeightPublisher(dial("host-1")).publish("p", modules())
    for name in ("eve", "learner", "ada"):
        with pytest.raises(SecurityError, match="may not call"):
            WeightPuller(dial(name)).pull(Wanted("p"))
    for name in ("host-1", "learner", "ada", "eve"):
        with pytest.raises(SecurityError, match="may not call"):
            roll_back(dial(name), "p", 1)


def test_an_engineer_lists_and_goes_back(
    publisher: WeightPublisher, dial: Callable[[str], DirectTunnel]
) -> None:
    publisher.publish("p", modules(), notes={"updates": 5.0})
    kim = dial("kim")
    (version,) = list_versions(kim, "p")
    assert (version.version, version.notes["updates"], version.age_s) == (1, 5.0, 1.5)
    assert version.bytes == sum(a.nbytes for m in modules().values() for a in m.values())
    assert roll_back(kim, "p", 3) == 300
    with pytest.raises(ConfigError, match="no such version"):
        roll_back(kim, "p", 9)


def test_what_may_not_travel_is_refused_before_it_does(publisher: WeightPublisher) -> None:
    with pytest.raises(SpecError, match="may not travel"):
        publisher.publish("p", {"m": {"w": np.array([object()])}})
    with pytest.raises(SpecError, match="reserved"):
        publisher.publish("p", {"statistics": {}})


def test_a_store_that_is_not_there(credentials: Callable[[str], Credentials]) -> None:
    tunnel = DirectTunnel(Endpoints(hub="127.0.0.1:1"), credentials("learner"))
    with pytest.raises(LinkError, match="could not publish"):
        WeightPublisher(tunnel).publish("p", modules())
    with pytest.raises(LinkError, match="could not pull"):
        WeightPuller(tunnel).pull(Wanted("p"))
    tunnel.close()
