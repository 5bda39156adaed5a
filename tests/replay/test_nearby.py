"""Pages are read whole or one by one, and come with their numbers either way."""

import errno
import os
import threading

import numpy as np
import pytest

from user_system.core.errors import DamageError
from user_system.replay.datafile import DataFile
from user_system.replay.mapped import PAGE
from user_system.replay.nearby import WINDOW, Nearby

PAGES = 3 * WINDOW + 10


@pytest.fixture
def file(tmp_path):
    """A file whose pages hold their own numbers."""
    path = tmp_path / "data"
    numbers = np.repeat(np.arange(PAGES, dtype="<u8"), PAGE // 8)
    path.write_bytes(numbers.tobytes())
    data = DataFile(path)
    yield data
    data.close()


def read(file, wanted, *, keep=True):
    """Return what was read of which pages, as two lists of numbers."""
    numbers, found = [], []
    with Nearby(file, PAGES) as nearby:
        for part in nearby.read(np.array(wanted, np.int64), keep=keep):
            numbers += part.numbers.tolist()
            found += part.space.view("<u8")[part.places, -1].tolist()
    return numbers, found


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    "wanted",
    [
        [],
        [0],
        [PAGES - 1],
        range(PAGES),
        range(0, PAGES, 2),
        range(0, PAGES, 100),
        [5, *range(WINDOW, 2 * WINDOW, 3), PAGES - 1],
    ],
)
def test_every_page_comes_once_with_its_number(file, wanted, keep):
    numbers, found = read(file, list(wanted), keep=keep)
    assert sorted(numbers) == list(wanted)
    assert found == numbers


@pytest.mark.parametrize("wanted", [[PAGES - 1], range(PAGES - 200, PAGES)])
def test_a_file_that_ends_too_early_is_damaged(file, tmp_path, wanted):
    os.truncate(tmp_path / "data", (PAGES - 1) * PAGE)
    with pytest.raises(DamageError, match="ends before"):
        read(file, list(wanted))


def test_a_kernel_that_cannot_leave_the_page_cache_alone_reads_all_the_same(file, monkeypatch):
    plain = os.preadv

    def old(handle, targets, position, flags=0):
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return plain(handle, targets, position)

    monkeypatch.setattr(os, "preadv", old)
    numbers, found = read(file, list(range(PAGES)), keep=False)
    assert found == numbers == list(range(PAGES))


def test_a_disk_that_fails_is_not_taken_for_an_old_kernel(file, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(os, "preadv", broken)
    for keep in (True, False):
        with pytest.raises(DamageError, match="bad sector"):
            read(file, [1, 2], keep=keep)


def test_threads_find_out_at_once_that_a_kernel_cannot_leave_the_page_cache_alone(
    file, monkeypatch
):
    plain = os.preadv
    together = threading.Barrier(2)

    def old(handle, targets, position, flags=0):
        if flags:
            together.wait(10)  # none of them knows yet what the other is told
            raise OSError(errno.EOPNOTSUPP, "not here")
        return plain(handle, targets, position)

    monkeypatch.setattr(os, "preadv", old)
    numbers, found = read(file, [1, WINDOW], keep=False)
    assert found == numbers == [1, WINDOW]


@pytest.mark.parametrize("keep", [True, False])
def test_a_kernel_that_reads_less_than_asked_is_asked_again(file, monkeypatch, keep):
    plain = os.preadv

    def little(handle, targets, position, flags=0):
        return plain(handle, [memoryview(targets[0])[: PAGE - 96]], position)

    monkeypatch.setattr(os, "preadv", little)
    numbers, found = read(file, range(PAGES), keep=keep)
    assert found == numbers == list(range(PAGES))
