"""Memory is used again when nobody holds it, and never before."""

import gc
import sys
import threading

import numpy as np
import pytest

from user_system.replay.arena import Arena


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_that_nobody_holds_is_used_again():
    arena = Arena()
    first = arena.take((1000, 7), np.float32)
    where = address(first)
    del first
    assert address(arena.take((1000, 7), np.float32)) == where


def test_memory_that_somebody_holds_is_left_alone():
    arena = Arena()
    batch = arena.take((64, 8, 8, 3), np.uint8)
    batch[:] = 7
    view = batch[3:5].reshape(-1).view(np.int8)
    del batch
    gc.collect()
    for _ in range(20):
        arena.take((64, 8, 8, 3), np.uint8)[:] = 9
    assert (view == 7).all()


def test_a_batch_in_another_thread_is_left_alone():
    arena = Arena()
    batch = arena.take((4096,), np.uint8)
    batch[:] = 5
    taken, go = threading.Event(), threading.Event()
    seen = []

    def hold(mine):
        taken.set()
        go.wait(5)
        seen.append(bool((mine == 5).all()))

    thread = threading.Thread(target=hold, args=(batch,))
    thread.start()
    taken.wait(5)
    del batch
    for _ in range(20):
        arena.take((4096,), np.uint8)[:] = 1
    go.set()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_it_does_not_matter_how_the_interpreter_counts(monkeypatch, more):
    """Python 3.14 counts one reference less: then memory that is held looked free."""
    count = sys.getrefcount
    monkeypatch.setattr(sys, "getrefcount", lambda of: count(of) - 1 + more)
    arena = Arena()
    batch = arena.take((64, 100), np.uint8)
    batch[:] = 7
    arena.take((64, 100), np.uint8)[:] = 9
    assert (batch == 7).all()
    where = address(batch)
    del batch
    found = {address(arena.take((64, 100), np.uint8)) for _ in range(3)}
    assert where in found, "it is used again"


def test_arrays_begin_at_a_page_as_images_in_the_file_do():
    arena = Arena()
    held = [arena.take((3, 5, size), np.uint8) for size in (1, 100, 70_000)]
    assert [address(array) % 4096 for array in held] == [0, 0, 0]
    assert all(array.flags.c_contiguous and array.flags.writeable for array in held)


def test_it_does_not_keep_everything_that_was_ever_asked_for():
    arena = Arena()
    for size in range(1, 200):
        arena.take((size * 10_000,), np.uint8)
    assert arena.nbytes < 30_000_000
