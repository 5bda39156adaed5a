"""Bodies: pieces are what the body has there, and many who ask cost no more than one."""

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from comms.pb import weights_pb2 as pb
from comms.weight_bodies import _RECENT, Body


def body(parts: list[bytes]) -> Body:
    return Body(pb.Begin(), parts, "name", sum(map(len, parts)))


@given(
    st.lists(st.binary(min_size=1, max_size=9), max_size=6),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=60),
)
def test_a_piece_is_what_the_body_has_there_whoever_asked_before(
    parts: list[bytes], asks: list[tuple[int, int]]
) -> None:
    one, whole = body(parts), b"".join(parts)
    for at, size in asks:
        offset = min(at, len(whole))
        piece = one.piece(offset, size).piece
        assert (piece.offset, piece.data) == (offset, whole[offset : offset + size])


def test_who_asks_for_the_same_gets_the_same_and_little_is_kept() -> None:
    one = body([bytes(100_000)])
    assert one.piece(10, 50) is one.piece(10, 50)
    # What is left at the end is one piece, however much is asked for.
    assert one.piece(99_990, 50) is one.piece(99_990, 10)
    for at in range(1000):
        one.piece(at, 1)
    assert len(one._recent) == _RECENT


def test_pieces_for_many_at_once() -> None:
    whole = bytes(range(256)) * 100
    one = body([whole])

    def fetch(size: int) -> bytes:
        return b"".join(one.piece(at, size).piece.data for at in range(0, len(whole), size))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fetch, [100, 100, 130, 130, 7, 7, 999, 100])) == {whole}
