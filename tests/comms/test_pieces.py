"""Pieces make the message again, or are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.pb import experience_pb2 as pb
from comms.pieces import Joiner, cut
from comms.tunnel import MAX_MESSAGE
from user_system.core.errors import SpecError


def message(size: int) -> pb.Fragments:
    return pb.Fragments(fragments=[pb.Fragment(sequence=size, record=bytes(range(256)) * size)])


@given(size=st.integers(0, 40), pieces=st.lists(st.integers(1, 5000), min_size=1))
def test_pieces_of_any_sizes_make_the_message_again(size, pieces):
    sizes = iter(pieces * 20_000)
    parts = list(cut(message(size), lambda: next(sizes)))
    assert all(part.receipt for part in parts)
    joiner = Joiner()
    found = [joiner.add(part.piece) for part in parts]
    assert found[:-1] == [None] * (len(found) - 1)
    assert found[-1] == message(size)
    assert not joiner.begun


@pytest.mark.parametrize(
    "pieces",
    [
        [pb.Piece(total=MAX_MESSAGE + 1, data=b"x")],
        [pb.Piece(total=10, data=b"")],
        [pb.Piece(total=10, data=b"x"), pb.Piece(total=11, data=b"x")],
        [pb.Piece(total=2, data=b"x"), pb.Piece(total=2, data=b"xx")],
        [pb.Piece(total=3, data=b"\xff\xff\xff")],
        [pb.Piece(total=0, data=b"x")],
    ],
)
def test_what_is_no_piece_is_refused(pieces):
    joiner = Joiner()
    for piece in pieces[:-1]:
        joiner.add(piece)
    with pytest.raises(SpecError, match="piece"):
        joiner.add(pieces[-1])
