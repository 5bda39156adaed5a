"""The tools themselves: a checker that cannot object and a disk that cannot lose prove nothing."""

import random
from pathlib import Path

import pytest
from kit import made, syscalls
from kit.damage import Damage, Whereabouts
from kit.files import SECTOR, Unmodelled
from kit.history import History, Journal, Stored, StoredLabel
from kit.powerfail import Disk
from kit.syscalls import Call, Moment
from kit.tally import Tally

pytestmark = pytest.mark.chaos

FIVE = [Stored("a", 1, sequence, f"hash-{sequence}") for sequence in range(5)]


@pytest.fixture
def history():
    """Five submitted, three of them acked."""
    history = History()
    for row in FIVE:
        history.submit(*row, "early" if row.sequence < 2 else "late")
    history.ack("a", 1, 3)
    return history


@pytest.mark.parametrize("count", [3, 4, 5])
def test_what_was_not_acked_may_be_there_or_not(history, count):
    assert history.check(FIVE[:count]).ok


@pytest.mark.parametrize(
    ("stored", "wrong"),
    [
        ([], {"lost": 3}),
        (FIVE[:2], {"lost": 1}),
        ([FIVE[0], FIVE[2], FIVE[3]], {"lost": 1}),
        ([*FIVE[:3], FIVE[4]], {"gaps": 1}),
        ([*FIVE[:3], FIVE[1]], {"doubled": 1}),
        ([FIVE[0], FIVE[2], FIVE[1]], {"reordered": 1}),
        ([*FIVE[:2], Stored("a", 1, 2, "hash-1")], {"corrupt": 1}),
        ([*FIVE, Stored("a", 1, 5, "hash-5")], {"invented": 1}),
        ([*FIVE[:3], Stored("b", 1, 0, "hash-0")], {"invented": 1}),
    ],
)
def test_each_wrong_is_found_and_named(history, stored, wrong):
    verdict = history.check(stored)
    assert {name: count for name, count in verdict.counts().items() if count} == wrong
    assert next(iter(wrong)) in str(verdict)


def test_an_ack_of_what_was_never_submitted_is_found(history):
    history.ack("a", 1, 6)
    assert history.check(FIVE).counts()["invented"] == 1


def test_deleted_episodes_go_as_a_whole_and_nothing_else_does(history):
    history.event("D early")
    assert history.check(FIVE).ok
    assert history.check(FIVE[2:]).ok
    assert history.check(FIVE[1:]).counts()["lost"] == 1
    assert history.check(FIVE[3:]).counts()["lost"] == 1
    history.event("X early")
    assert history.check(FIVE[2:]).ok
    assert history.check(FIVE).undeleted == ["early"]


def test_labels_keep_their_order_and_acked_ones_stay(history):
    for number in range(3):
        history.event(f"L early v{number} says-{number}")
    history.event("K early v1")
    labels = [StoredLabel("early", f"v{number}", f"says-{number}") for number in range(3)]
    assert history.check(FIVE, labels).ok
    assert history.check(FIVE, labels[1:2]).ok
    assert history.check(FIVE, labels[2:]).labels
    assert history.check(FIVE, labels[1::-1]).labels
    assert history.check(FIVE, [StoredLabel("early", "v1", "says-2")]).labels


def test_a_journal_is_read_up_to_its_last_whole_line(tmp_path):
    journal, history = Journal(tmp_path / "j"), History()
    journal.note("S", "a", 1, 0, "x")
    journal.note("A", "a", 1, 1)
    with (tmp_path / "j").open("a") as file:
        file.write("A a 1 9")
    journal.close()
    assert history.read([tmp_path / "j"]).acked == 1
    with (tmp_path / "j").open("a") as file:
        file.write("\n")
    assert history.read([tmp_path / "j"]).acked == 9


# --- the disk ------------------------------------------------------------------------------------

ROOT = Path("/root-of-the-record")


class Recorder:
    """Makes moments as a record has them."""

    def __init__(self):
        self.disk = Disk(ROOT)

    def do(self, name, arguments, result=0, done=True):
        call = Call(1, name, arguments, result)
        self.disk.take(Moment(call, done=False))
        if done:
            self.disk.take(Moment(call, done=True))
        return call

    def open(self, handle, name, flags="O_RDWR|O_CREAT"):
        self.do("openat", f"AT_FDCWD, {quoted(str(ROOT / name).encode())}, {flags}", handle)

    def write(self, handle, data, offset, **values):
        arguments = f"{handle}, {quoted(data)}, {len(data)}, {offset}"
        return self.do("pwrite64", arguments, len(data), **values)

    def sync_names(self):
        self.do("openat", f"AT_FDCWD, {quoted(str(ROOT).encode())}, O_RDONLY", 99)
        self.do("fsync", "99")

    def states(self, place, name, count=200):
        """Return what the file holds in many crashes; None where its name is not there."""
        found, rng = set(), random.Random(5)
        for _ in range(count):
            self.disk.crash(rng, place)
            file = place / name
            found.add(file.read_bytes() if file.exists() else None)
            file.unlink(missing_ok=True)
        return found


def quoted(data: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in data) + '"'


@pytest.fixture
def recorder():
    return Recorder()


def test_synced_bytes_under_a_synced_name_are_there_in_every_crash(recorder, tmp_path):
    recorder.open(3, "f")
    recorder.write(3, b"x" * 1500, 0)
    recorder.do("fdatasync", "3")
    recorder.sync_names()
    assert recorder.states(tmp_path, "f") == {b"x" * 1500}


def test_unsynced_sectors_are_there_or_not_each_for_itself(recorder, tmp_path):
    recorder.open(3, "f")
    recorder.write(3, b"0" * 2 * SECTOR, 0)
    recorder.do("fdatasync", "3")
    recorder.sync_names()
    recorder.write(3, b"1" * 2 * SECTOR, 0)
    halves = {b"0" * SECTOR, b"1" * SECTOR}
    assert recorder.states(tmp_path, "f") == {a + b for a in halves for b in halves}


def test_a_sector_written_twice_may_have_any_version(recorder, tmp_path):
    recorder.open(3, "f")
    recorder.sync_names()
    for byte in b"012":
        recorder.write(3, bytes([byte]) * SECTOR, 0)
    found = {state for state in recorder.states(tmp_path, "f") if len(state) == SECTOR}
    assert found == {b"0" * SECTOR, b"1" * SECTOR, b"2" * SECTOR}


def test_a_sync_covers_only_what_was_written_before_it_began(recorder, tmp_path):
    recorder.open(3, "f")
    recorder.sync_names()
    recorder.write(3, b"0" * SECTOR, 0)
    sync = recorder.do("fdatasync", "3", done=False)
    sync.thread = 1
    late = Call(2, "pwrite64", f"3, {quoted(b'1' * SECTOR)}, {SECTOR}, 0", SECTOR)
    recorder.disk.take(Moment(late, done=False))
    recorder.disk.take(Moment(late, done=True))
    recorder.disk.take(Moment(sync, done=True))
    assert recorder.states(tmp_path, "f") == {b"0" * SECTOR, b"1" * SECTOR}


def test_a_write_through_a_dsync_handle_is_safe_when_it_returns(recorder, tmp_path):
    recorder.open(3, "f")
    recorder.sync_names()
    recorder.open(4, "f", "O_WRONLY|O_DSYNC")
    recorder.write(4, b"x" * 100, 0, done=False)
    assert b"" in recorder.states(tmp_path, "f")
    recorder.disk.take(Moment(Call(1, "pwrite64", "4, , 100, 0", 100), done=True))
    assert recorder.states(tmp_path, "f") == {b"x" * 100}


def test_a_failed_sync_makes_nothing_safe(recorder, tmp_path):
    recorder.open(3, "f")
    recorder.sync_names()
    recorder.write(3, b"x" * SECTOR, 0)
    recorder.do("fdatasync", "3", -1)
    assert b"" in recorder.states(tmp_path, "f")


def test_a_rename_may_be_torn_from_its_bytes(recorder, tmp_path):
    """The classic: written, renamed, never synced."""
    recorder.open(3, "f.new")
    recorder.write(3, b"x" * 10, 0)
    recorder.do("rename", f"{quoted(bytes(ROOT / 'f.new'))}, {quoted(bytes(ROOT / 'f'))}")
    assert recorder.states(tmp_path, "f") == {None, b"", b"x" * 10}
    recorder.do("fsync", "3")
    assert recorder.states(tmp_path, "f") == {None, b"x" * 10}
    recorder.sync_names()
    assert recorder.states(tmp_path, "f") == {b"x" * 10}


def test_what_the_model_does_not_know_is_an_error(recorder):
    recorder.open(3, "f")
    for name, arguments in (("sync_file_range", "3"), ("ftruncate", "3, 5"), ("dup", "3")):
        with pytest.raises(Unmodelled):
            recorder.do(name, arguments)
    with pytest.raises(Unmodelled):
        recorder.do("mmap", "NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0", 1)


def test_calls_that_others_interrupt_are_joined():
    lines = [
        "7  fdatasync(3 <unfinished ...>\n",
        '8  pwrite64(3, "\\x41\\x42", 2, 0) = 2\n',
        "7  <... fdatasync resumed>)         = -1 EIO (Input/output error) (INJECTED)\n",
        "7  +++ killed by SIGKILL +++\n",
    ]
    moments = list(syscalls.parse(iter(lines)))
    assert [(m.call.name, m.done) for m in moments] == [
        ("fdatasync", False),
        ("pwrite64", False),
        ("pwrite64", True),
        ("fdatasync", True),
    ]
    assert moments[1].call.strings() == [b"AB"]
    assert (moments[3].call.result, moments[3].call.error) == (-1, "EIO")


# --- the rest ------------------------------------------------------------------------------------


def test_untouched_records_are_those_without_a_spoiled_byte():
    whereabouts = Whereabouts({0: [(0, 10)], 1: [(10, 20), (90, 95)], 2: [(20, 30)]})
    assert whereabouts.untouched(Damage("", "", 9, 10)) == {1, 2}
    assert whereabouts.untouched(Damage("", "", 25, 92)) == {0}


def test_a_fragment_s_hash_tells_every_part_of_it_apart():
    fragment = made.fragment("arm-1", 1, 4)
    assert made.digest(fragment) == made.digest(made.fragment("arm-1", 1, 4))
    others = {made.digest(made.fragment(*name)) for name in (("arm-1", 1, 3), ("arm-2", 1, 4))}
    assert made.digest(fragment) not in others
    for array in (fragment.observation["cam"], fragment.reward, fragment.streams["force"].values):
        before, array.flags.writeable = made.digest(fragment), True
        array.reshape(-1)[-1] += 1
        assert made.digest(fragment) != before


def test_the_table_sums_up(history):
    tally = Tally()
    verdicts = [history.check(FIVE), history.check(FIVE[:2])]
    tally.add("kills", "2 kills", *verdicts, further_note=7)
    assert "| kills | 2 kills | 6 | 1 | 0 | 0 | 0 | 0 | 0 | further note 7 |" in tally.table()
