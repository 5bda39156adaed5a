"""Small fragments share a message; what is too large for one goes by its name alone."""

from collections.abc import Callable

import pytest

from comms import experience_messages
from comms.experience_messages import Messages
from comms.packing import Packing
from user_system.core.types import Fragment


def test_small_fragments_travel_together_and_no_more_than_fit(
    make_fragment: Callable[..., Fragment], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = Messages(Packing())
    made = [make_fragment(sequence=k) for k in range(5)]
    size = max(messages.fragment(fragment).ByteSize() for fragment in made)
    monkeypatch.setattr(experience_messages, "TOGETHER", 2 * size)
    sent = [message.fragments.fragments for message in messages.of(made)]
    assert [[part.sequence for part in parts] for parts in sent] == [[0, 1], [2, 3], [4]]
    monkeypatch.setattr(experience_messages, "TOGETHER", size // 2)
    assert len(list(messages.of(made))) == 5, "one that is larger goes by itself"


def test_what_fits_no_message_is_named(
    make_fragment: Callable[..., Fragment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experience_messages, "MAX_MESSAGE", experience_messages._MARGIN + 10)
    message = Messages(Packing()).fragment(made := make_fragment(sequence=3))
    assert (message.sequence, message.source.producer) == (3, made.header.producer)
    assert not message.images
