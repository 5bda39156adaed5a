"""A learner's window on a replay buffer of another host: ``core.interfaces.Data``, ``Priorities``.

The learner cannot tell it from a local one: the same seed, store and requests give the same
batches, bit for bit, whatever breaks in between. The truth about where a learner is in its sequence
of draws is here, as the state that came with the last batch delivered; a reader that was restarted
is given it and goes on from there.

**Ahead.** While the learner works on one batch, the next one is drawn and sent: what followed this
request the last time, at first the same request again. Ahead draws are guesses: ``state_dict``
knows nothing of them, and one that the learner does not ask for is undone at the reader before
anything else is drawn. A batch that was drawn ahead does not hold what was recorded since.

**Said.** Priorities are numbered among the draws, so that they change the next one and no guess.
All of them are kept here too: a reader that was restarted is told them again, and states hold them.

**Encoders** run here, on images that came.
"""

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from comms import data_wire
from comms.data_features import Features
from comms.data_link import Key, Late, Link, Pending
from comms.data_priorities import Said, split
from comms.data_wire import Answer, Masses, Opening, State
from comms.pb import data_pb2 as pb
from comms.silence import LIMIT_S
from comms.tunnel import Tunnel
from user_system.core.errors import ConfigError, LinkError, StoreError
from user_system.core.interfaces import Draw, Encoder, NotReady
from user_system.core.priorities import checked
from user_system.core.supervise import Backoff
from user_system.core.types import Array, Batch

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 300.0
"""How long a reader that is away is waited for."""

MAX_AHEAD = 8
"""Batches ahead; the reader lets no more than 16 asks wait."""

_REMEMBERED = 64
"""Requests whose successors are remembered."""


class RemoteData:
    """Draws from a replay reader. One caller at a time; ``close`` may come from any thread.

    Args:
        tunnel: the way to the replay reader.
        shard: host that keeps the shard to draw from; "": what the head keeps.
        seed: of the draws.
        schema: id of the rows wanted; needed only where the store holds several.
        follow: whether each draw first takes in what is new.
        views: further views, name -> clauses as in a manifest.
        encoders: camera -> what its images become in batches.
        cache_bytes: memory for features, shared equally by the cameras.
        ahead: batches to draw and send before they are asked for; 0: none.
        ahead_bytes: memory that they may take here; a larger one is not sent ahead.
        patience_s: how long a reader that is away is waited for, in each call that needs it.
        answer_s: how long ``count`` waits for its answer, and ``state_dict`` before the first draw:
            whoever asks these has other things to do.
        silence_s: a reader that says nothing for so long is dialled again.
        stopped: ends that waiting with ``NotReady``.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        *,
        shard: str = "",
        seed: int = 0,
        schema: str | None = None,
        follow: bool = True,
        views: Mapping[str, Mapping[str, Any]] | None = None,
        encoders: Mapping[str, Encoder] | None = None,
        cache_bytes: int = 256 << 20,
        ahead: int = 1,
        ahead_bytes: int = 256 << 20,
        patience_s: float = PATIENCE_S,
        answer_s: float = 5.0,
        silence_s: float = LIMIT_S,
        stopped: threading.Event | None = None,
    ):
        if not 0 <= ahead <= MAX_AHEAD:
            raise ConfigError("batches to draw ahead", got=ahead, allowed=f"0..{MAX_AHEAD}")
        self._tunnel, self._shard = tunnel, shard
        self._opening = Opening(seed, schema, follow, views or {})
        self._depth, self._ahead_bytes = ahead, ahead_bytes
        self._patience_s, self._answer_s = patience_s, min(answer_s, patience_s)
        self._silence_s = silence_s
        self._stopped = stopped or threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        self._session = secrets.token_hex(16)
        self._delivered = 0
        self._state: State | None = None
        """As of the last answer delivered, without priorities; None: as the seed makes it."""
        self._said = Said()
        self._restored = False
        """Whether the reader has all that was said."""
        self._features = Features(encoders or {}, cache_bytes)
        self._link: Link | None = None
        self._ahead: deque[Pending] = deque()
        self._last: Key | None = None
        self._follows: dict[Key, Key] = {}
        self._sizes: dict[Key, int] = {}
        self._counted: dict[str, tuple[int, float]] = {}
        """View -> the steps that it held, and when that was answered, monotonic s."""
        self._away = False
        """Whether it was said that the reader is away."""
        self._figures = dict.fromkeys(
            ("draws", "ahead_used", "ahead_missed", "dialled", "waited_s"), 0.0
        )

    def __enter__(self) -> "RemoteData":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; safe to repeat."""
        self._closed = True
        link, self._link = self._link, None
        if link is not None:
            link.close(forget=True)

    def draw(self, request: Draw) -> Batch:
        """Return a batch drawn with replacement; see ``core.interfaces.Data.draw``.

        Raises:
            NotReady: a view of the mix is empty.
            LinkError: the reader stayed away for longer than our patience.
        """
        return self._take(pb.DATA_KIND_DRAW, request)

    def consume(self, request: Draw) -> Batch:
        """Return the oldest rows not consumed before, each exactly once.

        Raises:
            NotReady: fewer than ``n`` are there.
            LinkError: the reader stayed away for longer than our patience.
        """
        return self._take(pb.DATA_KIND_CONSUME, request)

    def count(self, view: str = "all") -> int:
        """Return how many steps a view holds now.

        Raises:
            NotReady: the reader did not answer in ``answer_s``; says why, and what it said last and
                how long ago that was. An older number is never passed off as today's.
        """
        ask = pb.DataAsk(kind=pb.DATA_KIND_COUNT, content=data_wire.encode_view(view))
        with self._lock:
            answer = self._soon(
                lambda within_s: self._ask(ask, within_s).wait(within_s),
                f"how many steps view {view!r} holds",
                lambda: self._last_count(view),
            )
        if answer.error is not None:
            raise answer.error
        if answer.count is None:
            raise StoreError("the replay reader did not say how many steps a view holds", got=view)
        self._counted[view] = answer.count, time.monotonic()
        return answer.count

    def names(self) -> Sequence[str]:
        """Return the names behind the codes of robot, task, run, operator and policy columns."""
        answer = self._aside(pb.DATA_KIND_NAMES)
        if answer.names is None:
            raise StoreError("the replay reader did not say what codes mean")
        return list(answer.names)

    def masses(self, request: Draw) -> Mapping[str, Masses]:
        """Return what ``request`` would draw from: view -> class -> (steps, weight)."""
        answer = self._aside(pb.DATA_KIND_MASSES, data_wire.encode_draw(request))
        if answer.masses is None:
            raise StoreError("the replay reader did not say what there is to draw from")
        return answer.masses

    def refresh(self) -> bool:
        """Take in what is new; return whether there was anything."""
        with self._lock:
            answer = self._deliver((pb.DATA_KIND_REFRESH, b""))
            self._go_on((pb.DATA_KIND_REFRESH, b""))
        return answer.new

    def prioritise(self, ids: Array, values: Array) -> None:
        """Say what steps ``ids`` ``[N]`` are worth; see ``core.interfaces.Priorities``.

        Raises:
            NotReady: nothing is stored.
            LinkError: the reader stayed away; what it had not taken of them by then is not said.
        """
        with self._lock:
            for some in split(*checked(ids, values)):
                self._deliver((pb.DATA_KIND_PRIORITISE, data_wire.encode_priorities(*some)))
                self._said.add(*some)
            self._go_on((pb.DATA_KIND_PRIORITISE, b""))

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state as of the last batch delivered: draws repeat exactly after loading it.

        It is that of a local window: either kind loads what the other saved.

        Raises:
            NotReady: nothing was drawn yet, and the reader did not answer in ``answer_s``.
        """
        with self._lock:
            if self._state is None:
                self._soon(self._linked, "where draws begin")
            said = {"priorities": self._said.state()} if self._said else {}
            return {**(self._state or {}), **said}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``, in a new session.

        Raises:
            SpecError: the store holds less than the learner had seen; nothing was changed.
        """
        said = Said(state.get("priorities"))
        place = {name: value for name, value in state.items() if name != "priorities"}
        with self._lock:
            before = self._session, self._delivered, self._state, self._said
            self._hang_up(forget=True)
            self._session, self._delivered = secrets.token_hex(16), 0
            self._state, self._said = place, said
            try:
                self._patiently(self._linked)
            except BaseException:
                self._session, self._delivered, self._state, self._said = before
                raise
            self._last = None

    def stats(self) -> dict[str, float]:
        """Return draws, how many of them were there ahead or drawn in vain, and waits for them."""
        return {**self._figures, **self._features.stats()}

    # --- taking ----------------------------------------------------------------------------------

    def _take(self, kind: pb.DataKind, request: Draw) -> Batch:
        key = int(kind), data_wire.encode_draw(request)
        with self._lock:
            answer = self._receive(key)
            batch = None if answer.batch is None else self._encoded(request, answer.batch)
            self._count(answer)
            if batch is None:
                raise StoreError("the replay reader answered a draw without a batch")
            self._figures["draws"] += 1
            self._go_on(key, answer.size)
            return batch

    def _encoded(self, request: Draw, batch: Batch) -> Batch:
        """Put features in place; where that fails the batch is not taken, and comes again."""
        try:
            return self._features.put(request, batch)
        except BaseException:
            self._drop_ahead()
            raise

    def _deliver(self, key: Key) -> Answer:
        """Return the answer to the next numbered ask; whatever it was, it counts from now on."""
        answer = self._receive(key)
        self._count(answer)
        return answer

    def _receive(self, key: Key) -> Answer:
        """Return the answer to the next numbered ask, not counted yet."""
        began = time.monotonic()
        answer = self._patiently(lambda: self._attempt(key))
        self._figures["waited_s"] += time.monotonic() - began
        if answer.state is None:  # it was not counted there
            self._hang_up()
            raise answer.error or StoreError("the replay reader answered without a state")
        return answer

    def _count(self, answer: Answer) -> None:
        """Have an answer; raise the error that it is, where it is one."""
        self._delivered, self._state = self._delivered + 1, answer.state
        if answer.error is not None:
            self._drop_ahead()
            raise answer.error

    def _go_on(self, key: Key, size: int = 0) -> None:
        """Look ahead from an ask that was answered; one without a size is never foreseen."""
        self._learn(key, size)
        self._look_ahead(key)

    def _last_count(self, view: str) -> str:
        if view not in self._counted:
            return "it never said"
        count, at = self._counted[view]
        return f"{count} when it last said it, {time.monotonic() - at:.0f} s ago"

    def _aside(self, kind: pb.DataKind, content: bytes = b"") -> Answer:
        """Return the answer to an ask that is not numbered."""
        ask = pb.DataAsk(kind=kind, content=content)
        with self._lock:
            answer = self._patiently(lambda: self._ask(ask).wait())
        if answer.error is not None:
            raise answer.error
        return answer

    def _attempt(self, key: Key) -> Answer:
        """Return the next numbered answer: the one that is on its way, if it is the right one."""
        if self._ahead and self._ahead[0].key == key:
            answer = self._ahead.popleft().wait()
            if not answer.skipped:
                self._figures["ahead_used"] += 1
                return answer
        self._drop_ahead()
        return self._ask(self._numbered(key, self._delivered + 1)).wait()

    def _learn(self, key: Key, size: int) -> None:
        """Remember what followed what, and how large it was."""
        if len(self._sizes) >= _REMEMBERED and key not in self._sizes:
            self._follows.clear()
            self._sizes.clear()
        if self._last is not None:
            self._follows[self._last] = key
        self._sizes[key] = size
        self._last = key

    def _look_ahead(self, last: Key) -> None:
        """Ask for what will probably be wanted next, as far as there is room for it."""
        room = self._ahead_bytes - sum(pending.max_bytes for pending in self._ahead)
        for pending in self._ahead:
            last = pending.key
        while len(self._ahead) < self._depth:
            key = self._follows.get(last, last)
            # Batches of one request differ in size by their state, and episodes by their length.
            size = self._sizes.get(key, 0)
            expected = size + size // 4 + (64 << 10)
            if size == 0 or expected > room or self._link is None:
                return
            ask = self._numbered(key, self._delivered + len(self._ahead) + 1)
            ask.ahead, ask.max_bytes = True, expected
            pending = Pending(key, expected)
            try:
                self._ahead.append(self._link.ask(pb.DataRequest(ask=ask), pending))
            except LinkError:
                return  # the next call notices, and dials again
            room, last = room - expected, key

    def _drop_ahead(self) -> None:
        """Have nobody look at what is on its way; the reader undoes it at the next ask."""
        for pending in self._ahead:
            pending.unwanted = True
        self._figures["ahead_missed"] += len(self._ahead)
        self._ahead.clear()

    def _numbered(self, key: Key, number: int) -> pb.DataAsk:
        return pb.DataAsk(
            kind=key[0],  # type: ignore[arg-type]  # an enum's number
            number=number,
            delivered=self._delivered,
            content=key[1],
        )

    # --- the connection --------------------------------------------------------------------------

    def _ask(self, ask: pb.DataAsk, within_s: float | None = None) -> Pending:
        ask.delivered = self._delivered
        pending = Pending((int(ask.kind), ask.content))
        return self._linked(within_s).ask(pb.DataRequest(ask=ask), pending)

    def _linked(self, within_s: float | None = None) -> Link:
        """Return a connection on which our session is open.

        Args:
            within_s: how long the answer to its opening may take; None: as long as the reader says
                that it is there. A session that takes longer to make is found by the next call.
        """
        if self._link is not None and self._link.alive:
            return self._link
        self._hang_up()
        if self._closed:
            raise StoreError("this window on the replay buffer is closed")
        self._figures["dialled"] += 1
        content = data_wire.encode_opening(self._opening, self._state)
        opening = pb.DataOpen(session=self._session, delivered=self._delivered, content=content)
        link = Link(self._tunnel, self._silence_s, self._shard)
        try:
            answer = link.ask(pb.DataRequest(open=opening), Pending((0, b""))).wait(within_s)
            if answer.error is not None:
                raise answer.error
            self._restored = self._restored and not answer.rebuilt
            if not self._restored:
                self._restore(link)
        except BaseException:
            link.close()
            raise
        self._link = link
        if self._state is None:
            self._state = answer.state
        return link

    def _restore(self, link: Link) -> None:
        """Tell a reader that made our session anew all that was said."""
        waiting = []
        for some in self._said.parts():
            content = data_wire.encode_priorities(*some)
            ask = pb.DataAsk(kind=pb.DATA_KIND_RESTORE, delivered=self._delivered, content=content)
            waiting.append(link.ask(pb.DataRequest(ask=ask), Pending((int(ask.kind), b""))))
        for pending in waiting:
            if (error := pending.wait().error) is not None:
                raise error
        self._restored = True

    def _hang_up(self, *, forget: bool = False) -> None:
        link, self._link = self._link, None
        self._drop_ahead()
        if link is not None:
            link.close(forget=forget)

    def _soon(
        self, attempt: Callable[[float], T], what: str, last: Callable[[], str] = lambda: ""
    ) -> T:
        """Return what ``attempt`` does in the seconds that it is given.

        Raises:
            NotReady: it did not; says that nobody knows ``what``, and what ``last`` says.
        """
        until = time.monotonic() + self._answer_s
        try:
            return self._patiently(lambda: attempt(max(0.0, until - time.monotonic())), until)
        except LinkError as error:
            said = "; ".join(filter(None, (str(error).rstrip("."), last())))
            todo = (
                "It is asked again; see to the replay reader, and to the network on the way there."
            )
            why = LinkError(f"the replay reader does not say {what}", got=said, todo=todo)
            raise NotReady(str(why)) from error

    def _patiently(self, attempt: Callable[[], T], until: float | None = None) -> T:
        """Return what ``attempt`` does; while the reader is away, try again.

        Args:
            attempt: raises ``LinkError`` where the reader is away.
            until: when to give up, monotonic s; None: after ``patience_s`` of failures.
        """
        backoff = Backoff(0.1, 2.0)
        while True:
            try:
                result = attempt()
                self._away = False
                return result
            except LinkError as error:
                if not isinstance(error, Late):  # then what was asked ahead is still on its way
                    self._hang_up()
                now = time.monotonic()
                until = now + self._patience_s if until is None else until
                if not self._away:
                    self._away = True
                    log.warning("waiting for the replay reader: %s", error)
                if self._closed or now >= until:
                    raise
                if self._stopped.wait(min(backoff.died(0.0), until - now)):
                    raise NotReady("the replay reader is away, and we are to end") from error
