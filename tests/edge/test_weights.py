"""Weights at a robot host: nothing bad gets through, nothing comes twice, all moves forward."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from comms.pb import weights_pb2 as pb
from comms.weight_bodies import Bodies
from comms.weight_puller import checked
from comms.weight_transfer import Transfer
from user_system.codec import weights as codec
from user_system.core.clock import WallClock
from user_system.core.errors import LinkError, MissingError
from user_system.core.ports import Manifest, TensorEntry, Travel
from user_system.edge import weight_client, weight_files
from user_system.edge.acting import ActingWeights
from user_system.edge.messages import WeightsNews, WeightsReady
from user_system.edge.weight_client import WeightClient
from user_system.edge.worker_client import Loaded
from user_system.hub.weight_store import WeightStore

PIECE = 1000


class Head:
    """A weight store without wire: what it sends can be broken or changed on the way."""

    def __init__(self, directory):
        self.store = WeightStore(directory, WallClock())
        self.store.open()
        self.bodies = Bodies(self.store)
        self.changed = threading.Condition()
        self.store.watch(self.tell)
        self.cut_after = []
        """Pieces after which transfers break, the next one first."""
        self.spoil = lambda manifest, travels, body: (manifest, travels, body)
        self.wants, self.sent = [], 0

    def tell(self):
        with self.changed:
            self.changed.notify_all()

    def publish(self, modules, statistics=None, bases=None):
        rows = codec.entries(modules, statistics)
        entries = tuple(TensorEntry(*row) for row in rows)
        manifest = Manifest("p", 0, codec.entries_hash(rows), entries, bases=bases or {})
        upload, missing = self.store.offer(manifest)
        named = {**modules, "statistics": statistics or {}}
        for entry in entries:
            if entry.hash in missing:
                data = named[entry.module][entry.name].tobytes()
                self.store.put(upload, entry.hash, 0, len(data), data)
        return self.store.commit(upload)


class Puller:
    """One host's connection to it."""

    def __init__(self, head):
        self.head, self.woken, self.closed = head, False, False

    def pull(self, want):
        with self.head.changed:
            self.head.changed.wait_for(lambda: self.woken or self.found(want) or want.version, 5.0)
            if self.woken:
                self.woken = False
                return None
        manifest = self.found(want)
        if manifest is None:
            if want.version:
                raise MissingError("no such version", got=want.version)
            raise LinkError("nothing for a long time")
        self.head.wants.append(want)
        fields = {name: getattr(want, name) for name in want.__slots__}
        body = self.head.bodies.body(manifest, pb.Want(**fields))
        begin = want.offset if want.body == body.name else 0
        travels = [Travel(t.form, t.size, t.file, t.at, t.check) for t in body.begin.travels]
        manifest, travels, data = self.head.spoil(manifest, travels, body.read(0, body.total))
        checked(manifest, want)
        cut = self.head.cut_after.pop(0) if self.head.cut_after else None
        return Coming(self.head, manifest, tuple(travels), body.name, begin, data, cut)

    def found(self, want):
        manifest = self.head.store.get("p", want.version)
        newer = manifest is not None and manifest.version > want.newer_than
        return manifest if want.version or newer else None

    def wake(self):
        self.woken = True
        self.head.tell()

    def close(self):
        self.closed = True

    def stats(self):
        return {"pulled": 0.0}


class Coming(Transfer):
    def __init__(self, head, manifest, travels, body, offset, data, cut):
        super().__init__(manifest, travels, body, offset, len(data), 0.5)
        self.head, self.data, self.cut = head, data, cut

    def __iter__(self):
        for number, at in enumerate(range(self.offset, len(self.data), PIECE)):
            if number == self.cut:
                raise LinkError("cut")
            piece = self.data[at : at + PIECE]
            self.head.sent += len(piece)
            yield piece


def modules(value=1.0, size=4):
    rng = np.random.default_rng(int(value * 100))
    return {
        "policy": {
            "w": rng.standard_normal((size, 3)).astype(np.float32),
            "b": np.zeros(3, np.float64),
        }
    }


@pytest.fixture
def head(tmp_path):
    return Head(tmp_path / "hub")


@pytest.fixture
def client(tmp_path, head):
    made = []

    def make(**options):
        ready = []

        def note(policy, found):
            # What a worker reads, at the moment in which it hears of it.
            ready.append((found, weight_files.load(Path(found.path))))

        client = WeightClient(lambda: Puller(head), tmp_path / "w", note, **options)
        client.ready = ready
        client.start()
        client.follow("p")
        made.append(client)
        return client

    yield make
    for one in made:
        one.close()


def versions(client):
    return [found.version for found, _ in client.ready]


def test_each_new_version_is_laid_down(client, head, wait_for):
    c = client()
    for number in range(1, 4):
        assert head.publish(modules(number), {"mean": np.ones(2)}) == number
        wait_for(lambda n=number: versions(c) == [*range(1, n + 1)], f"version {number}")
    found, weights = c.ready[-1]
    assert (weights.policy, weights.version) == ("p", 3)
    assert weights.hash == codec.weights_hash(weights.modules, weights.statistics)
    np.testing.assert_array_equal(weights.modules["policy"]["w"], modules(3)["policy"]["w"])
    assert weights.statistics["mean"].tolist() == [1, 1]
    assert 0.4 < time.monotonic() - found.offered_s < 30
    assert head.wants[-1].held == 2


def test_who_comes_late_gets_the_newest(client, head, wait_for):
    for number in range(1, 4):
        head.publish(modules(number))
    c = client()
    wait_for(lambda: versions(c) == [3], "the newest")


def test_a_broken_transfer_goes_on_where_it_broke(client, head, wait_for):
    head.publish(modules(size=1000))
    head.cut_after = [3, 4, 2]
    c = client(pack=False)
    wait_for(lambda: versions(c) == [1], "version 1")
    assert head.sent == 12_000 + 24
    assert [want.offset for want in head.wants] == [0, 3000, 7000, 9000]


def test_nothing_is_left_of_a_transfer_that_is_over(client, head, wait_for, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_client, "KEEP_AFTER_S", 0.0)
    head.cut_after = [2, None]
    c = client()
    head.publish(modules(1, size=1000))
    wait_for(lambda: versions(c) == [1], "version 1")
    left = tmp_path / "w" / "p" / "coming.body"
    wait_for(lambda: not left.exists() and not left.with_suffix(".note").exists(), "a clean end")


def test_also_in_another_life(client, head, wait_for, monkeypatch):
    """Killed three times: what had come is on the disk, and only the rest comes."""
    monkeypatch.setattr(weight_client, "KEEP_AFTER_S", -1.0)
    head.publish(modules(size=1000))
    head.publish(modules(2, size=1000))  # the one that comes is gone on with, not a newer one
    for count, cut in enumerate((3, 4, 2), 1):
        head.cut_after = [cut, *[0] * 1000]
        c = client(pack=False)
        wait_for(lambda n=count: sum(w.offset > 0 for w in head.wants) >= n, "a broken transfer")
        c.close()
    head.publish(modules(3, size=1000))
    head.cut_after = []
    c = client(pack=False)
    wait_for(lambda: versions(c) == [2, 3], "version 2 and then 3")
    assert head.sent == 2 * 12_000 + 24


def test_a_damaged_beginning_of_an_earlier_life_is_left(
    client, head, wait_for, monkeypatch, tmp_path
):
    monkeypatch.setattr(weight_client, "KEEP_AFTER_S", -1.0)
    head.publish(modules(size=1000))
    head.cut_after = [3, *[0] * 1000]
    c = client()
    wait_for(lambda: any(want.offset for want in head.wants), "a broken transfer")
    c.close()
    path = tmp_path / "w" / "p" / "coming.body"
    path.write_bytes(bytes(len(path.read_bytes())))
    head.cut_after = []
    c = client()
    wait_for(lambda: versions(c) == [1], "version 1")
    assert c.stats()["weights_refused"] == 0


def test_a_host_that_comes_back_acts_with_what_it_had(client, head, wait_for):
    head.publish(modules(1))
    head.publish(modules(2))
    c = client()
    wait_for(lambda: versions(c) == [2], "version 2")
    c.close()
    sent = head.sent
    again = client()
    wait_for(lambda: versions(again) == [2], "what lay there")
    head.publish(modules(3))
    wait_for(lambda: versions(again) == [2, 3], "version 3")
    assert head.sent == sent + 48, "the bias is here"


@pytest.mark.parametrize(("source", "heard"), [("old key", [10**12]), ("new key", [1])])
def test_numbers_of_a_head_that_was_taken_over_end_with_its_keys(
    client, head, wait_for, tmp_path, source, heard
):
    """Its last number may be above all that a head made anew will ever give."""
    weight_files.keep_only(tmp_path / "w", "old key")
    base = tmp_path / "w" / "bases" / "b"
    base.parent.mkdir()
    base.touch()
    head.publish(modules(1))
    spoil, head.spoil = head.spoil, lambda m, t, b: (replace(m, version=10**12), t, b)
    c = client()
    wait_for(lambda: versions(c) == [10**12], "what the taken-over head said")
    c.close()
    head.spoil = spoil
    weight_files.keep_only(tmp_path / "w", source)
    again = client()
    wait_for(lambda: versions(again) == heard, "what its keys let it believe")
    assert base.exists(), "frozen bases never travel"


def test_versions_of_before_sources_were_noted_stay(client, head, wait_for, tmp_path):
    head.publish(modules(1))
    c = client()
    wait_for(lambda: versions(c) == [1], "version 1")
    c.close()
    for _ in range(2):
        weight_files.keep_only(tmp_path / "w", "key")
        assert (tmp_path / "w" / "p" / "1.json").exists()


@pytest.mark.parametrize("kind", ["json", "bin"])
def test_what_lies_there_damaged_is_fetched_again(client, head, wait_for, tmp_path, kind):
    head.publish(modules(1))
    c = client()
    wait_for(lambda: versions(c) == [1], "version 1")
    c.close()
    (path,) = (tmp_path / "w" / "p").glob(f"*.{kind}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    again = client()
    wait_for(lambda: versions(again) == [1], "version 1 again")
    assert head.wants[-1].held == 0


def test_what_was_laid_down_just_before_the_end_does_not_come_for_ever(
    client, head, wait_for, tmp_path
):
    """A life may end after a version is there, and before it is noted that nothing comes."""
    head.publish(modules(1.0))
    one = client()
    wait_for(lambda: versions(one) == [1], "version 1")
    one.close()
    folder = tmp_path / "w" / "p"
    (folder / "coming.note").write_text('{"body": "x", "version": 1, "held": 0}')
    (folder / "coming.body").write_bytes(b"beginning")
    two = client()
    wait_for(lambda: versions(two), "version 1 again")
    head.publish(modules(2.0))
    wait_for(lambda: 2 in versions(two), "version 2")
    assert len(versions(two)) < 5, "each of them is a message to every robot"


def test_an_unforeseen_error_does_not_end_the_following(client, head, wait_for):
    errors = [OSError("a disk that is gone for a moment"), ValueError("channel closed")]

    def spoil(manifest, travels, body):
        if errors:
            raise errors.pop()
        return manifest, travels, body

    head.spoil = spoil
    head.publish(modules(1.0))
    one = client()
    wait_for(lambda: versions(one) == [1], "version 1")
    assert one.stats()["weights_failures"] == 2


def test_a_version_that_none_can_lay_down_does_not_block_the_next(
    client, head, wait_for, monkeypatch
):
    lay = weight_files.Folder.lay

    def some(self, manifest, *args):
        if manifest.version == 1:
            raise ValueError("nobody foresaw this")
        return lay(self, manifest, *args)

    monkeypatch.setattr(weight_files.Folder, "lay", some)
    head.publish(modules(1.0))
    one = client()
    wait_for(lambda: one.stats()["weights_failures"] > 1, "failures")
    head.publish(modules(2.0))
    wait_for(lambda: versions(one) == [2], "version 2")


def test_few_changes_come_as_changes(client, head, wait_for):
    old = modules(size=1000)
    head.publish(old)
    c = client()
    wait_for(lambda: versions(c) == [1], "version 1")
    sent = head.sent
    new = {"policy": {name: array.copy() for name, array in old["policy"].items()}}
    new["policy"]["w"][7] += 1
    head.publish(new)
    wait_for(lambda: versions(c) == [1, 2], "version 2")
    assert head.sent - sent < 60
    np.testing.assert_array_equal(c.ready[-1][1].modules["policy"]["w"], new["policy"]["w"])


def test_a_pinned_version_is_fetched_whatever_its_age(client, head, wait_for):
    for number in range(1, 4):
        head.publish(modules(number))
    c = client()
    wait_for(lambda: versions(c) == [3], "version 3")
    c.need("p", 1)
    wait_for(lambda: versions(c) == [3, 1], "version 1")
    c.need("p", 3)
    wait_for(lambda: versions(c) == [3, 1, 3], "what is here is said at once")
    assert len(head.wants) == 2


def test_a_version_that_is_gone_does_not_block_others(client, head, wait_for):
    c = client()
    c.need("p", 5)
    head.publish(modules(1))
    wait_for(lambda: versions(c) == [1], "version 1")


def test_only_some_files_are_kept(client, head, wait_for, tmp_path):
    c = client(keep=2)
    for number in range(1, 6):
        head.publish(modules(number))
        wait_for(lambda n=number: versions(c)[-1:] == [n], f"version {number}")
    c.close()
    names = {path.name for path in (tmp_path / "w" / "p").iterdir()}
    # The first one brought the bias, which is still that of the last.
    assert names == {"1.bin", "4.json", "4.bin", "5.json", "5.bin"}


def test_robots_hear_of_a_version_before_old_ones_are_removed(client, head, wait_for, monkeypatch):
    """Removing can wait for the disk for as long as others write."""
    heard = []
    keep = weight_files.Folder.keep

    def noted(folder, laid):
        laid = list(laid)
        heard.append((max(one.manifest.version for one in laid), versions(c)))
        keep(folder, laid)

    monkeypatch.setattr(weight_files.Folder, "keep", noted)
    c = client()
    for number in (1, 2):
        head.publish(modules(number))
        wait_for(lambda n=number: len(heard) == n, f"version {number}")
    assert heard == [(1, [1]), (2, [1, 2])]


def test_a_pinned_version_stays_while_newer_ones_come(client, head, wait_for):
    """An evaluation names an old version; its file must be there when the robot hears of it."""
    c = client(keep=2)
    for number in range(1, 4):
        head.publish(modules(number))
        wait_for(lambda n=number: versions(c)[-1:] == [n], f"version {number}")
    c.need("p", 1)
    wait_for(lambda: versions(c)[-1:] == [1], "version 1")
    head.publish(modules(4))
    wait_for(lambda: versions(c)[-1:] == [4], "version 4")
    assert Path(c.ready[-2][0].path).exists()


def test_a_frozen_base_that_is_not_here_is_named(
    client, head, wait_for, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(weight_client, "_LACKING_S", 0.05)
    head.publish(modules(), bases={"vit": "f" * 64})
    c = client()
    wait_for(lambda: c.stats()["weights_lacking_bases"] > 0, "a complaint")
    assert "needs the frozen base 'vit', which never travels" in caplog.text
    assert str(tmp_path / "w" / "bases" / ("f" * 64)) in caplog.text
    assert versions(c) == []
    (tmp_path / "w" / "bases").mkdir()
    (tmp_path / "w" / "bases" / ("f" * 64)).touch()
    wait_for(lambda: versions(c) == [1], "version 1")


# --- near ---------------------------------------------------------------------------------------


def test_who_shares_the_disk_reads_it_there(client, head, wait_for, tmp_path):
    c = client(near=tmp_path / "hub", keep=2)
    for number in range(1, 12):
        head.publish(modules(number))
        wait_for(lambda n=number: versions(c)[-1:] == [n], f"version {number}")
    assert head.sent == 0
    np.testing.assert_array_equal(c.ready[-1][1].modules["policy"]["w"], modules(11)["policy"]["w"])
    c.close()
    head.store.close()
    again = client(near=tmp_path / "hub")
    wait_for(lambda: versions(again) == [10, 11], "what lay there")


def test_who_only_seems_to_gets_it_sent(client, head, wait_for, tmp_path):
    c = client(near=tmp_path / "elsewhere")
    head.publish(modules(1))
    wait_for(lambda: versions(c) == [1], "version 1")
    assert head.sent == 12 * 4 + 24
    assert c.stats()["weights_refused"] == 0


@pytest.mark.parametrize("file", ["/etc/passwd", "../w/x", "p/../../x"])
def test_no_file_outside_is_read(client, head, wait_for, tmp_path, file):
    head.spoil = lambda m, ts, b: (m, [t._replace(file=file) for t in ts], b)
    c = client(near=tmp_path / "hub")
    head.publish(modules(1))
    wait_for(lambda: c.stats()["weights_refused"] == 1, "a refusal")
    assert versions(c) == []


def test_a_file_that_changed_since_the_store_looked_at_it_is_refused(
    client, head, wait_for, tmp_path
):
    """The store says what it found when it compared hashes, not what lies there by now."""
    head.publish(modules(1))
    path = tmp_path / "hub" / "p" / "00000001.bin"
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    c = client(near=tmp_path / "hub")
    wait_for(lambda: c.stats()["weights_refused"] == 1, "a refusal")
    assert versions(c) == []


def test_a_file_with_other_bytes_is_refused(client, head, wait_for, tmp_path):
    head.spoil = lambda m, ts, b: (m, [t._replace(check=t.check ^ 1) for t in ts], b)
    c = client(near=tmp_path / "hub")
    head.publish(modules(1))
    wait_for(lambda: c.stats()["weights_refused"] == 1, "a refusal")
    assert versions(c) == []


# --- what must not get through ------------------------------------------------------------------


def spoiled(kind, rng):
    """Return a way to change a version so that it is not the one that was published."""

    def rehash(manifest):
        rows = [codec.Entry(*entry) for entry in manifest.tensors]
        return replace(manifest, hash=codec.entries_hash(rows))

    def spoil(manifest, travels, body):
        body = bytearray(body)
        rows = list(manifest.tensors)
        at = int(rng.integers(len(rows)))
        match kind:
            case "torn":
                body = body[: rng.integers(len(body))]
            case "flipped":
                body[rng.integers(len(body))] ^= 1 + rng.integers(255)
            case "shuffled":
                body = body[4:] + body[:4]
            case "nan":
                data = np.full(rows[1].shape, np.nan, rows[1].dtype)
                rows[1] = rows[1]._replace(hash=codec.tensor_hash(data))
                body[-data.nbytes :] = data.tobytes()
            case "hash":
                rows[at] = rows[at]._replace(hash=rng.bytes(32).hex())
            case "foreign":
                rows[at] = rows[at]._replace(name="other")
            case "shape":
                rows[at] = rows[at]._replace(shape=(*rows[at].shape, 1))
            case "form":
                form = str(rng.choice(["half", "zstd", "xor", "sparse", "", "near", "zip"]))
                travels = [t._replace(form=form) for t in travels]
            case "bigger":
                travels[at] = travels[at]._replace(size=travels[at].size + 1)
        return rehash(replace(manifest, tensors=tuple(rows))), travels, bytes(body)

    return spoil


KINDS = ["torn", "flipped", "shuffled", "nan", "hash", "foreign", "shape", "form", "bigger"]


def test_a_thousand_bad_pushes_reach_no_robot(client, head, wait_for):
    rng = np.random.default_rng(0)
    c = client()
    head.publish(modules(0))
    wait_for(lambda: versions(c) == [1], "version 1")
    for number in range(1, 1001):
        head.spoil = spoiled(KINDS[number % len(KINDS)], rng)
        changed = modules(number)
        changed["policy"]["b"] += number
        head.publish(changed)
        while c.stats()["weights_refused"] < number:
            assert versions(c) == [1]
            time.sleep(0.0005)
    assert versions(c) == [1]
    head.spoil = lambda *as_it_is: as_it_is
    good = head.publish(modules(2000))
    wait_for(lambda: versions(c) == [1, good], "a good one")


def test_what_is_said_to_be_here_must_be_here_with_that_dtype_and_shape(client, head, wait_for):
    c = client()
    head.publish(modules(0))
    wait_for(lambda: versions(c) == [1], "version 1")
    here = codec.tensor_hash(np.zeros(3))

    def spoil(manifest, travels, body):
        bias, weight = manifest.tensors  # "w" is said to be the same as "b", of half its size
        rows = (bias, weight._replace(hash=here))
        hash = codec.entries_hash(codec.Entry(*row) for row in rows)
        travels = [travel._replace(form="", size=0) for travel in travels]
        return replace(manifest, tensors=rows, hash=hash), travels, b""

    head.spoil = spoil
    head.publish(modules(1))
    wait_for(lambda: c.stats()["weights_refused"] == 1, "a refusal")
    assert versions(c) == [1]


# --- which of them act --------------------------------------------------------------------------


def found(acting, *numbers):
    for number in numbers:
        acting.found(WeightsReady(number, f"/w/{number}", 0.0))


def test_what_acts_moves_forward():
    acting = ActingWeights()
    assert acting.due(0) is None
    found(acting, 3)
    assert acting.due(0).version == 3
    assert acting.due(0) is None  # under way
    acting.loaded(Loaded(3, ""))
    found(acting, 2)
    assert acting.due(0) is None
    found(acting, 5)
    assert acting.due(0).version == 5
    acting.loaded(Loaded(5, ""))
    assert acting.version == 5
    assert "weights_age_p99_s" in acting.stats()


def test_a_pin_is_the_one_exception_and_ends():
    acting = ActingWeights()
    found(acting, 3, 5)
    acting.due(0)
    acting.loaded(Loaded(5, ""))
    assert not acting.knows(4)
    assert acting.due(4) is None
    assert acting.due(3).version == 3
    acting.loaded(Loaded(3, ""))
    assert acting.due(3) is None
    assert acting.due(0).version == 5


def test_what_an_evaluation_kept_waiting_is_not_late(monkeypatch):
    """The age is that of the way from the learner; a pin is no part of it."""
    now = 1000.0
    monkeypatch.setattr("user_system.edge.acting.time.monotonic", lambda: now)
    acting = ActingWeights()
    acting.found(WeightsReady(3, "3", 999.5))
    acting.due(0)
    acting.loaded(Loaded(3, ""))
    assert acting.stats()["weights_age_s"] == pytest.approx(0.5)
    acting.found(WeightsReady(4, "4", 1000.0))
    for later in (1000.0, 1010.0, 1020.0):
        now = later
        assert acting.due(3) is None
    now = 1020.25
    assert acting.due(0).version == 4
    acting.loaded(Loaded(4, ""))
    assert acting.stats()["weights_age_s"] == pytest.approx(0.25)
    assert acting.stats()["weights_age_p99_s"] == pytest.approx(0.5)


def test_loading_what_is_pinned_says_nothing_about_the_way(monkeypatch):
    acting = ActingWeights()
    found(acting, 3)
    acting.due(3)
    acting.loaded(Loaded(3, ""))
    assert "weights_age_s" not in acting.stats()


def test_an_old_pin_is_found_behind_many_newer_ones():
    acting = ActingWeights()
    found(acting, *range(10, 40), 3)
    assert acting.knows(3)
    assert acting.due(3).version == 3
    acting.loaded(Loaded(3, ""))
    assert acting.due(0).version == 39


def test_the_newest_is_known_however_many_pins_came():
    acting = ActingWeights()
    found(acting, 40, *range(1, 20))
    assert acting.due(0).version == 40


def test_refused_weights_are_not_tried_again():
    acting = ActingWeights()
    found(acting, 3)
    acting.due(0)
    acting.loaded(Loaded(3, "plugin 'p' could not load"))
    assert acting.version == 0
    assert acting.due(0) is None
    found(acting, 4)
    assert acting.due(0).version == 4


def test_a_new_worker_gets_them_again():
    acting = ActingWeights()
    found(acting, 3)
    acting.due(0)
    acting.loaded(Loaded(3, ""))
    acting.worker_lost()
    assert acting.due(0).version == 3


def test_where_the_head_chooses_weights_nothing_is_loaded_or_asked_for_here():
    weights = ActingWeights()
    assert not weights.knows(9)
    weights.acts(5)
    weights.found(WeightsReady(7, "7", 0.0))  # of another actor with the same learner
    assert weights.due(0) is None
    assert weights.due(7) is None
    assert weights.knows(9), "an evaluation's version is the head's to find"
    weights.acts(4)
    assert weights.version == 4, "an evaluation pins an older one"


def test_weights_are_as_stale_as_what_is_known_of_newer_ones(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("user_system.edge.acting.time.monotonic", lambda: now)
    acting = ActingWeights()
    now = 1050.0
    assert acting.stale_s == 0, "there are none yet"
    acting.heard(WeightsNews(3, offered_s=1049.0, heard_s=1050.0))
    found(acting, 3)
    now = 1051.0
    assert acting.stale_s == 2, "something newer was offered two seconds ago"
    acting.due(0)
    acting.loaded(Loaded(3, ""))
    assert acting.stale_s == 1, "the hub said a second ago that there is nothing newer"
    now = 1900.0
    acting.heard(WeightsNews(3, offered_s=1049.0, heard_s=1900.0))
    assert acting.stale_s == 0, "a learner that has nothing new to say does not make it stale"
    acting.heard(WeightsNews(4, offered_s=1899.0, heard_s=1900.0))
    acting.heard(WeightsNews(5, offered_s=1900.0, heard_s=1900.0))
    now = 1910.0
    assert acting.stale_s == 11, "since the first one that it does not act with"


def test_what_lay_there_grows_stale_while_the_head_is_away(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("user_system.edge.acting.time.monotonic", lambda: now)
    acting = ActingWeights()
    found(acting, 3)
    acting.due(0)
    acting.loaded(Loaded(3, ""))
    now = 1030.0
    assert acting.stale_s == 30
    assert acting.stats()["weights_stale_s"] == 30
