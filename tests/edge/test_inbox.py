"""What other threads leave for a loop: in order, at once, and bounded where it stands still."""

import threading
import time

import numpy as np
import pytest

from user_system.edge.inbox import CROWDED, Inbox
from user_system.edge.messages import Grant, OperatorCommand, Request


@pytest.fixture
def inbox():
    made = Inbox()
    yield made
    made.close()


def test_posts_are_taken_once_and_in_order(inbox):
    posts = [Grant("arm", 1), Request("arm", "hold", "ann", 1), Grant("arm", 2)]
    for post in posts:
        inbox.post(post)
    assert list(inbox.take()) == posts
    assert list(inbox.take()) == []


def test_what_is_posted_meanwhile_is_taken_too(inbox):
    inbox.post(Grant("arm", 1))
    taken = []
    for post in inbox.take():
        taken.append(post.token)
        if post.token < 3:
            inbox.post(Grant("arm", post.token + 1))
    assert taken == [1, 2, 3]


def test_a_post_wakes_who_waits_and_one_that_was_taken_does_not(inbox):
    later = threading.Timer(0.05, inbox.post, (Grant("arm", 1),))
    later.start()
    began = time.monotonic()
    inbox.wait(None, 60.0)
    assert time.monotonic() - began < 30.0
    later.join()
    assert len(list(inbox.take())) == 1
    began = time.monotonic()
    inbox.wait(None, 0.02)
    assert time.monotonic() - began >= 0.015


def test_a_loop_that_stands_still_keeps_requests_and_few_commands(inbox):
    for number in range(5000):
        wish = np.zeros(2, np.float32)
        inbox.post(OperatorCommand("arm", "ann", 2, "boot", number, 200.0, wish, 0))
    inbox.post(Request("arm", "estop", "anybody", 0, "r1"))
    assert len(inbox) == CROWDED + 1
    assert isinstance(list(inbox.take())[-1], Request), "a stop waits for no room"
