"""Numbered asks to one window: each done once, said again when asked again, undone when unwanted.

The learner numbers what it takes. An answer is kept until the learner says that it has it, together
with the window's state from before it. Hence

- an answer that was lost on the way is the same answer again, not another draw;
- a draw that the learner foresaw but then did not want is undone, with all after it, before what it
  does want is drawn: the random numbers and what counts as consumed are those of a learner that
  never looked ahead.

What a learner says of its steps, and when it takes in what is new, is numbered among its draws: it
changes those that follow, and nothing that was foreseen before it holds.

Undoing leaves the index where it is: it knows more than before, as at any later draw.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from comms import data_wire
from comms.data_wire import SKIPPED, Masses, State
from comms.pb import data_pb2 as pb
from user_system.core.errors import SpecError, StoreError, UserSystemError
from user_system.core.interfaces import Data, Draw, NotReady, Priorities

log = logging.getLogger(__name__)


UNNUMBERED = (
    pb.DATA_KIND_COUNT,
    pb.DATA_KIND_NAMES,
    pb.DATA_KIND_MASSES,
    pb.DATA_KIND_RESTORE,
)
"""Kinds of asks that take nothing away; the last one brings back what the learner had said."""


class Window(Data, Priorities, Protocol):
    """What is served: a learner's window on the replay buffer whose draws can be taken back."""

    def bookmark(self) -> Any:
        """Return where the sequence of draws is now: a value of the window's own."""

    def rewind(self, bookmark: Any) -> None:
        """Take back what was drawn, consumed and said since ``bookmark``."""

    def refresh(self) -> bool:
        """Take in what is new; return whether there was anything."""

    def names(self) -> Sequence[str]:
        """Return the names behind the codes of columns."""

    def masses(self, request: Draw) -> Mapping[str, Masses]:
        """Return what a draw would draw from: view -> class -> (steps, weight)."""

    def bytes_of(self, request: Draw) -> int:
        """Return about how many bytes a batch of ``request`` would have, without drawing it."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer that the learner may not have heard."""

    key: tuple[int, bytes]
    """Kind and content of the ask."""
    before: State
    place: Any
    """Where the window was before it: its bookmark."""
    data: bytes


class Answers:
    """The answers of one session. For one thread.

    Args:
        window: at the state as of ``delivered``.
        delivered: number of the last answer that the learner has.
        batch_bytes: largest answer.
        kept_bytes: bytes of answers not delivered beyond which none is made ahead.
    """

    def __init__(self, window: Window, delivered: int, *, batch_bytes: int, kept_bytes: int):
        self._window = window
        self._batch_bytes, self._kept_bytes = batch_bytes, kept_bytes
        self._state: State = window.state_dict()
        self._place = window.bookmark()
        self._done = self._delivered = delivered
        self._kept: dict[int, _Kept] = {}
        self.figures = dict.fromkeys(
            ("batches", "told", "repeated", "undone", "skipped", "errors"), 0.0
        )

    @property
    def state(self) -> State:
        """State of the window as of the last answer."""
        return self._state

    @property
    def kept_bytes(self) -> int:
        """Bytes of answers that may have to be said again."""
        return sum(len(kept.data) for kept in self._kept.values())

    def covers(self, delivered: int) -> bool:
        """Whether a learner that has all answers up to ``delivered`` can go on with this."""
        return self._delivered <= delivered <= self._done

    def state_at(self, delivered: int) -> State:
        """Return the state as of an answer that this covers; earlier answers are forgotten."""
        self._forget(delivered)
        following = self._kept.get(delivered + 1)
        return self._state if following is None else following.before

    def answer(self, ask: pb.DataAsk) -> bytes:
        """Return the answer to an ask: batch, state, count, names, error or ``SKIPPED``."""
        self._forget(ask.delivered)
        if ask.kind in UNNUMBERED:
            return self._aside(ask)
        key = int(ask.kind), ask.content
        kept = self._kept.get(ask.number)
        if kept is not None and kept.key == key:
            self.figures["repeated"] += 1
            return kept.data
        if kept is not None:
            self._undo(ask.number)
        if ask.number != self._done + 1:
            return self._out_of_turn(ask)
        return self._next(ask, key)

    def _forget(self, delivered: int) -> None:
        if not self.covers(delivered):
            raise SpecError(
                "a session goes on from an answer that it gave",
                got=delivered,
                allowed=f"{self._delivered}..{self._done}",
            )
        for number in range(self._delivered + 1, delivered + 1):
            del self._kept[number]
        self._delivered = delivered

    def _undo(self, number: int) -> None:
        """Make it so that ``number`` and all after it were never drawn."""
        undone = self._kept[number]
        self._state, self._place = undone.before, undone.place
        self._window.rewind(self._place)
        for gone in range(number, self._done + 1):
            del self._kept[gone]
            self.figures["undone"] += 1
        self._done = number - 1

    def _out_of_turn(self, ask: pb.DataAsk) -> bytes:
        if ask.ahead:
            return self._skip()  # one before it was skipped
        raise SpecError("draws are numbered", got=ask.number, allowed=self._done + 1)

    def _skip(self) -> bytes:
        self.figures["skipped"] += 1
        return SKIPPED

    def _next(self, ask: pb.DataAsk, key: tuple[int, bytes]) -> bytes:
        failed = False
        try:
            data, after = self._take(ask)
        except (NotReady, UserSystemError) as error:
            failed, after = True, self._window.state_dict()
            data = data_wire.encode_error(error, after)
        except Exception as error:  # top of a request: the learner hears of it, others go on
            log.exception("a draw failed")
            self._window.rewind(self._place)
            failed, after = True, self._state
            data = data_wire.encode_error(unforeseen(error), after)
        if ask.ahead and (failed or len(data) > self._room(ask)):
            self._window.rewind(self._place)
            return self._skip()
        drawn = ask.kind in (pb.DATA_KIND_DRAW, pb.DATA_KIND_CONSUME)
        self.figures["errors" if failed else "batches" if drawn else "told"] += 1
        self._kept[ask.number] = _Kept(key, self._state, self._place, data)
        self._done, self._state, self._place = ask.number, after, self._window.bookmark()
        return data

    def _take(self, ask: pb.DataAsk) -> tuple[bytes, State]:
        """Do what is asked; return the answer, and the state after it."""
        match ask.kind:
            case pb.DATA_KIND_DRAW | pb.DATA_KIND_CONSUME:
                return self._batch(ask)
            case pb.DATA_KIND_PRIORITISE if not ask.ahead:
                self._window.prioritise(*data_wire.decode_priorities(ask.content))
                after = self._window.state_dict()
                return data_wire.encode_state(after), after
            case pb.DATA_KIND_REFRESH if not ask.ahead:
                new = self._window.refresh()
                after = self._window.state_dict()
                return data_wire.encode_state(after, new=new), after
        raise SpecError(
            "unknown kind of ask",
            got=int(ask.kind),
            allowed="draw, consume, count, masses, prioritise, refresh, names, restore",
        )

    def _batch(self, ask: pb.DataAsk) -> tuple[bytes, State]:
        request = data_wire.decode_draw(ask.content)
        self._check_size(self._window.bytes_of(request), ask)
        draw = ask.kind == pb.DATA_KIND_DRAW
        batch = self._window.draw(request) if draw else self._window.consume(request)
        after = self._window.state_dict()
        data = data_wire.encode_batch(batch, after)
        self._check_size(len(data), ask)
        return data, after

    def _check_size(self, size: int, ask: pb.DataAsk) -> None:
        allowed = min(self._batch_bytes, self._room(ask)) if ask.ahead else self._batch_bytes
        if size > allowed:
            raise SpecError(
                "batch is too large to be drawn over the network",
                got=f"{size >> 20} MiB",
                allowed=f"{allowed >> 20} MiB",
                todo="Draw fewer rows at a time, shorter ones, or fewer observations.",
            )

    def _room(self, ask: pb.DataAsk) -> int:
        """Return how large an answer that nobody waits for may be."""
        return min(ask.max_bytes, self._kept_bytes - self.kept_bytes)

    def _aside(self, ask: pb.DataAsk) -> bytes:
        """Answer what is not numbered."""
        try:
            if ask.kind == pb.DATA_KIND_NAMES:
                return data_wire.encode_names(self._window.names())
            if ask.kind == pb.DATA_KIND_RESTORE:
                return self._restore(ask)
            if ask.kind == pb.DATA_KIND_MASSES:
                wanted = data_wire.decode_draw(ask.content)
                return data_wire.encode_masses(self._window.masses(wanted))
            view = data_wire.decode_view(ask.content)
            return data_wire.encode_count(self._window.count(view))
        except (NotReady, UserSystemError) as error:
            return data_wire.encode_error(error, None)
        except Exception as error:  # top of a request, as above
            log.exception("an ask failed")
            return data_wire.encode_error(unforeseen(error), None)

    def _restore(self, ask: pb.DataAsk) -> bytes:
        """Take over priorities that the learner had said before this session was made anew."""
        if self._kept:
            raise SpecError(
                "priorities are restored before anything is drawn", got=f"{len(self._kept)} draws"
            )
        ids, values = data_wire.decode_priorities(ask.content)
        with suppress(NotReady):  # no step is there, so none of them is
            self._window.prioritise(ids, values)
        self._place = self._window.bookmark()
        return data_wire.encode_state(self._state)


def unforeseen(error: Exception) -> StoreError:
    """Return what a learner hears of an error that nobody foresaw."""
    return StoreError(
        "unforeseen error at the replay reader",
        got=f"{type(error).__name__}: {error}"[:500],
        todo="See its log.",
    )
