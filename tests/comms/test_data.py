"""Draws over the network: the same as on the replay's own host, whatever breaks in between."""

import inspect
import json
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms import data_priorities, data_wire, silence
from comms.credentials import AllowList, Credentials
from comms.data_answers import Answers
from comms.data_client import RemoteData
from comms.data_service import DataService
from comms.data_session import CREDIT, Limits
from comms.data_wire import SKIPPED, Opening
from comms.pb import data_pb2 as pb
from comms.pb import data_pb2_grpc
from comms.serving import Server, serve
from comms.tunnel import DirectTunnel, Endpoints
from user_system.core.draws import Weigh
from user_system.core.errors import (
    ConfigError,
    DamageError,
    LinkError,
    PluginError,
    SecurityError,
    SpecError,
    StoreError,
)
from user_system.core.interfaces import Data, Draw, NotReady, Priorities
from user_system.core.types import Batch, Fragment
from user_system.replay.sampler import ReplayData
from user_system.replay.served import ServedData
from user_system.replay.store import Store
from user_system.replay.views import View, with_views

GENEROUS_S = 60.0
"""Bounds hangs only."""

Make = Callable[[Opening], Any]


class Log:
    """The replay buffer as a number of rows, and what is done to it."""

    def __init__(self, size: int = 50) -> None:
        self.size = size
        self.row_bytes = 8
        self.draws = 0
        self.before_draw: Callable[[int], None] = lambda number: None


class Numbers:
    """A window on a ``Log``: draws row numbers; as exact and as easily disturbed as a real one."""

    def __init__(self, log: Log, seed: int = 0) -> None:
        self.log = log
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.taken: list[int] = []

    def draw(self, request: Draw) -> Batch:
        self.log.draws += 1
        self.log.before_draw(self.log.draws)
        ids: list[int] = []
        for view in request.mix:  # a view that is empty is noticed after numbers were spent
            if view == "none":
                raise NotReady("view 'none' is empty")
            ids += self.rng.integers(0, self.log.size, request.n).tolist()
        return self.batch(ids)

    def consume(self, request: Draw) -> Batch:
        fresh = [row for row in range(self.log.size) if row not in self.taken][: request.n]
        if len(fresh) < request.n:
            raise NotReady(f"{len(fresh)} of {request.n} rows to consume")
        self.taken += fresh
        return self.batch(fresh)

    def count(self, view: str = "all") -> int:
        if view != "all":
            raise ConfigError("unknown view", got=view, allowed="all")
        return self.log.size

    def state_dict(self) -> Mapping[str, Any]:
        return {"rng": self.rng.bit_generator.state, "taken": list(self.taken)}

    def bookmark(self) -> Any:
        return self.state_dict()

    def rewind(self, bookmark: Any) -> None:
        self.load_state_dict(bookmark)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.taken = list(state["taken"])

    def bytes_of(self, request: Draw) -> int:
        return request.n * self.log.row_bytes

    def batch(self, ids: list[int]) -> Batch:
        none = np.zeros(len(ids), np.float32)
        seen = {"o": np.full((len(ids), self.log.row_bytes), 7, np.uint8)}
        return Batch(
            observation=seen,
            action=none,
            reward=none,
            discount=none,
            next_observation={},
            end=none.astype(np.uint8),
            valid=none.astype(bool),
            ids=np.array(ids, np.uint64),
        )


# --- answers: numbers, repeats, and what was foreseen in vain -------------------------------------

REQUESTS = (Draw(3), Draw(2), Draw(4, mix={"all": 1.0, "none": 1.0}))
STEP = st.tuples(
    st.sampled_from([pb.DATA_KIND_DRAW, pb.DATA_KIND_CONSUME]),
    st.sampled_from(REQUESTS),
    st.lists(st.sampled_from(REQUESTS), max_size=3),
    st.integers(0, 2),
    st.booleans(),
)
"""What is wanted, what was foreseen before it, how often it is asked again, whether it counts."""


def ask(number: int, delivered: int, kind: int, request: Draw, **more: Any) -> pb.DataAsk:
    content = data_wire.encode_draw(request)
    return pb.DataAsk(kind=kind, number=number, delivered=delivered, content=content, **more)  # type: ignore[arg-type]


def answered(window: Data, kind: int, request: Draw) -> tuple[list[int] | str, Mapping[str, Any]]:
    """Return ids, or what went wrong, and the state after it."""
    take = window.draw if kind == pb.DATA_KIND_DRAW else window.consume
    try:
        return take(request).ids.tolist(), window.state_dict()
    except NotReady as error:
        return str(error), window.state_dict()


def decoded(data: bytes) -> tuple[list[int] | str, Any]:
    answer = data_wire.decode_answer(np.frombuffer(bytearray(data), np.uint8))
    if answer.error is not None:
        return str(answer.error), answer.state
    return answer.batch.ids.tolist() if answer.batch else [], answer.state


@given(st.lists(STEP, max_size=12))
def test_guesses_and_repeats_change_nothing(steps: list[Any]) -> None:
    log = Log()
    local = Numbers(log)
    answers = Answers(Numbers(log), 0, batch_bytes=1 << 20, kept_bytes=1 << 20)
    delivered = 0
    for kind, request, guesses, repeats, counts in steps:
        for i, guess in enumerate(guesses):
            foreseen = ask(delivered + 1 + i, delivered, pb.DATA_KIND_DRAW, guess)
            foreseen.ahead, foreseen.max_bytes = True, 1 << 20
            answers.answer(foreseen)
        if counts:
            view = data_wire.encode_view("all")
            count = pb.DataAsk(kind=pb.DATA_KIND_COUNT, delivered=delivered, content=view)
            assert data_wire.decode_answer(
                np.frombuffer(answers.answer(count), np.uint8)
            ).count == 50  # fmt: skip
        expected = answered(local, kind, request)
        for _ in range(1 + repeats):
            got = decoded(answers.answer(ask(delivered + 1, delivered, kind, request)))
            assert json.dumps(got) == json.dumps(expected)
        delivered += 1
    assert answers.state_at(delivered) == local.state_dict()


def test_a_guess_that_cannot_be_met_leaves_no_trace() -> None:
    log = Log(size=5)
    answers = Answers(Numbers(log), 0, batch_bytes=1 << 20, kept_bytes=1 << 20)
    before = json.dumps(answers.state)
    more = {"ahead": True, "max_bytes": 1 << 20}
    assert answers.answer(ask(1, 0, pb.DATA_KIND_DRAW, REQUESTS[2], **more)) == SKIPPED
    assert answers.answer(ask(2, 0, pb.DATA_KIND_DRAW, REQUESTS[0], **more)) == SKIPPED
    assert json.dumps(answers.state) == before
    log.size = 50
    assert decoded(answers.answer(ask(1, 0, pb.DATA_KIND_CONSUME, Draw(7))))[0] == list(range(7))


def test_what_is_not_delivered_is_bounded() -> None:
    log = Log()
    log.row_bytes = 1000
    answers = Answers(Numbers(log), 0, batch_bytes=1 << 20, kept_bytes=50_000)
    asks = [
        ask(n, 0, pb.DATA_KIND_DRAW, Draw(20), ahead=True, max_bytes=1 << 20) for n in (1, 2, 3)
    ]
    sizes = [len(answers.answer(one)) for one in asks]
    assert sizes[0] > 20_000
    assert sizes[1] > 20_000
    assert sizes[2] == len(SKIPPED)
    assert answers.kept_bytes <= 50_000
    small = ask(3, 2, pb.DATA_KIND_DRAW, Draw(20), ahead=True, max_bytes=10_000)
    assert answers.answer(small) == SKIPPED, "larger than the learner has room for"


def test_a_batch_that_is_too_large_is_refused_before_it_is_drawn() -> None:
    log = Log()
    log.before_draw = lambda number: pytest.fail("it was drawn")
    log.row_bytes = 1 << 20
    answers = Answers(Numbers(log), 0, batch_bytes=5 << 20, kept_bytes=1 << 30)
    text, _ = decoded(answers.answer(ask(1, 0, pb.DATA_KIND_DRAW, Draw(6))))
    assert "too large to be drawn over the network; got 6 MiB; allowed: 5 MiB" in str(text)


@pytest.mark.parametrize(("number", "delivered"), [(0, 0), (2, 0), (9, 0), (1, 3)])
def test_numbers_out_of_turn_are_refused(number: int, delivered: int) -> None:
    answers = Answers(Numbers(Log()), 0, batch_bytes=1 << 20, kept_bytes=1 << 20)
    with pytest.raises(SpecError, match=r"draws are numbered|goes on from an answer"):
        answers.answer(ask(number, delivered, pb.DATA_KIND_DRAW, Draw(1)))


def test_an_unforeseen_error_is_told_and_undone() -> None:
    log = Log()
    window = Numbers(log)
    answers = Answers(window, 0, batch_bytes=1 << 20, kept_bytes=1 << 20)
    before = json.dumps(window.state_dict())

    def fail(number: int) -> None:
        window.rng.random()
        raise ZeroDivisionError("oh")

    log.before_draw = fail
    answer = data_wire.decode_answer(
        np.frombuffer(answers.answer(ask(1, 0, pb.DATA_KIND_DRAW, Draw(1))), np.uint8)
    )
    assert type(answer.error) is StoreError
    assert "ZeroDivisionError: oh" in str(answer.error)
    assert json.dumps(window.state_dict()) == before


# --- over the network -----------------------------------------------------------------------------


class Reader:
    """The replay reader: can be stopped and started again on the same port."""

    def __init__(self, make: Make, credentials: Credentials, allow: AllowList):
        self.make, self.credentials, self.allow = make, credentials, allow
        self.server: Server | None = None
        self.port = 0

    def start(self, limits: Limits | None = None) -> int:
        self.server = serve(
            [DataService(self.make, limits)],
            credentials=self.credentials,
            allow=self.allow,
            address=f"127.0.0.1:{self.port}",
        )
        self.port = self.server.port
        return self.port

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop(0.0)
        self.server = None

    def figure(self, name: str) -> float:
        assert self.server is not None
        return self.server.stats().get(name, 0.0)

    def wait_for(self, name: str, value: float) -> None:
        wait_until(lambda: self.figure(name) == value)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def serving(
    credentials: Callable[[str], Credentials], allow: AllowList
) -> Iterator[Callable[[Make], Reader]]:
    readers: list[Reader] = []

    def make(window: Make) -> Reader:
        readers.append(Reader(window, credentials("replay"), allow))
        return readers[-1]

    yield make
    for reader in readers:
        reader.stop()


@pytest.fixture
def numbers(log: Log, serving: Callable[[Make], Reader]) -> Reader:
    return serving(lambda opening: Numbers(log, opening.seed))


@pytest.fixture
def window(credentials: Callable[[str], Credentials]) -> Iterator[Callable[..., RemoteData]]:
    opened: list[Any] = []

    def dial(port: int, name: str = "learner", **options: Any) -> RemoteData:
        tunnel = DirectTunnel(Endpoints(reader=f"127.0.0.1:{port}"), credentials(name))
        data = RemoteData(tunnel, **options)
        opened.extend((data, tunnel))
        return data

    yield dial
    for item in opened:
        item.close()


def same(mine: Batch, theirs: Batch) -> None:
    for name in Batch.__dataclass_fields__:
        left, right = getattr(mine, name), getattr(theirs, name)
        if not isinstance(left, Mapping):
            left, right = {name: left}, {name: right}
        assert list(left) == list(right)
        for key in left:
            assert (left[key].dtype, left[key].shape) == (right[key].dtype, right[key].shape)
            assert left[key].tobytes() == right[key].tobytes(), (name, key)


@pytest.fixture
def store(tmp_path: Path, make_fragment: Callable[..., Fragment]) -> Iterator[Store]:
    with Store(tmp_path / "store").open(create=True) as store:
        fill(store, make_fragment, 0, 60)
        yield store


def fill(store: Store, make: Callable[..., Fragment], start: int, end: int) -> None:
    """Store fragments whose rows can all be told apart."""
    fragments = []
    for k in range(start, end):
        fragment = make(sequence=k, steps=4, final=k % 5 == 4, image=8)
        q = np.arange(fragment.observation["q"].size, dtype=np.float32)
        q = q.reshape(fragment.observation["q"].shape) + 1000 * k
        pixels = np.random.default_rng(k).integers(0, 256, fragment.observation["wrist"].shape)
        observation = {"q": q, "wrist": pixels.astype(np.uint8)}
        fragments.append(replace(fragment, observation=observation))
    assert not store.append(fragments)


@pytest.fixture
def reader(store: Store, serving: Callable[[Make], Reader]) -> Reader:
    def make(opening: Opening) -> ServedData:
        views = with_views({n: View.parse(n, c) for n, c in opening.views.items()})
        return ServedData(store.env, seed=opening.seed, schema=opening.schema, views=views)

    return serving(make)


MANY = (
    Draw(16),
    Draw(5, unit="nstep", length=3, gamma=0.9),
    Draw(4, unit="window", length=6, columns=("segment", "version", "proposed")),
    Draw(2, unit="episode", observations=("q",)),
    Draw(8, mix={"auto": 0.75, "all": 0.25}, columns=("reward",)),
    Draw(6, weigh=Weigh("k", power=0.7, floor=1.0), history=3),
)


def script(data: Data, rounds: int, seed: int) -> Iterator[Batch]:
    """Do what a learner might: requests of all kinds in an order that only the seed knows."""
    choose = random.Random(seed)
    for _ in range(rounds):
        request = choose.choice(MANY)
        if choose.random() < 0.3 and request.unit != "episode" and request.weigh is None:
            yield data.consume(replace(request, n=2))
        else:
            for _ in range(choose.randint(1, 3)):
                yield data.draw(request)
        if choose.random() < 0.3:
            data.count("online")


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_draws_are_those_of_a_local_window(
    store: Store, reader: Reader, window: Callable[..., RemoteData], ahead: int
) -> None:
    local = ReplayData(store.env, seed=7)
    remote = window(reader.start(), seed=7, ahead=ahead)
    assert isinstance(remote, Data)
    for mine, theirs in zip(script(remote, 30, 1), script(local, 30, 1), strict=True):
        same(mine, theirs)
        assert remote.state_dict() == json.loads(json.dumps(local.state_dict()))
    assert remote.count() == local.count() > 0
    if ahead:
        assert remote.stats()["ahead_used"] > 0
        assert remote.stats()["ahead_missed"] > 0


def test_either_kind_of_window_goes_on_where_the_other_stopped(
    store: Store,
    reader: Reader,
    window: Callable[..., RemoteData],
    make_fragment: Callable[..., Fragment],
) -> None:
    port = reader.start()
    whole = ReplayData(store.env, seed=3)
    expected = [batch for _ in range(4) for batch in script(whole, 4, 9)]
    first, found = ReplayData(store.env, seed=3), []
    found += script(first, 4, 9)
    second = window(port, seed=99, ahead=2)
    second.load_state_dict(first.state_dict())
    found += script(second, 4, 9)
    third = window(port, seed=98)
    third.load_state_dict(second.state_dict())  # though more was drawn ahead
    found += script(third, 4, 9)
    fourth = ReplayData(store.env)
    fourth.load_state_dict(third.state_dict())
    found += script(fourth, 4, 9)
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("broken", [False, True])
def test_a_state_that_was_loaded_counts_at_once(
    reader: Reader, window: Callable[..., RemoteData], broken: bool
) -> None:
    data = window(reader.start(), ahead=2)
    data.draw(MANY[0])
    state = data.state_dict()
    once = [data.draw(MANY[0]).ids.tolist() for _ in range(3)]
    if broken:  # so that the reader does not hear that the old session is over
        data._hang_up()
    data.load_state_dict(state)
    assert data.state_dict() == state
    assert [data.draw(MANY[0]).ids.tolist() for _ in range(3)] == once


def test_an_index_that_grows_is_followed(
    store: Store,
    reader: Reader,
    window: Callable[..., RemoteData],
    make_fragment: Callable[..., Fragment],
) -> None:
    remote, local = window(reader.start(), ahead=0), ReplayData(store.env)
    before = remote.count()
    for k in (60, 65):
        same(remote.draw(MANY[0]), local.draw(MANY[0]))
        fill(store, make_fragment, k, k + 5)
    same(remote.draw(MANY[0]), local.draw(MANY[0]))
    assert remote.count() == local.count() == before + 40


@pytest.mark.parametrize(
    "request_",
    [
        Draw(4, mix={"demos": 1.0}),
        Draw(4, mix={"mine": 1.0}),
        Draw(4, unit="row"),  # type: ignore[arg-type]
        Draw(4, length=0),
        Draw(0),
        Draw(4, columns=("nothing",)),
        Draw(4, observations=("nothing",)),
    ],
)
def test_refusals_are_those_of_a_local_window(
    store: Store, reader: Reader, window: Callable[..., RemoteData], request_: Draw
) -> None:
    remote, local = window(reader.start()), ReplayData(store.env)
    for data in (remote, local):
        data.draw(MANY[0])
    with pytest.raises((NotReady, SpecError, ConfigError)) as mine:
        remote.draw(request_)
    with pytest.raises((NotReady, SpecError, ConfigError)) as theirs:
        local.draw(request_)
    assert mine.type is theirs.type
    assert str(mine.value) == str(theirs.value)
    same(remote.draw(MANY[0]), local.draw(MANY[0]))


def test_a_store_of_several_schemas_wants_one_to_be_named(
    store: Store,
    reader: Reader,
    window: Callable[..., RemoteData],
    make_fragment: Callable[..., Fragment],
) -> None:
    other = make_fragment("arm-2", steps=4, final=True)
    header = replace(other.header, schema="other")
    assert not store.append([replace(other, header=header)])
    remote, local = window(reader.start()), ReplayData(store.env)
    said = []
    for data in (remote, local, remote):
        with pytest.raises(SpecError, match="several schemas") as error:
            data.draw(MANY[0])
        said.append(str(error.value))
    assert len(set(said)) == 1
    named = window(reader.port, schema="other")
    same(named.draw(MANY[0]), ReplayData(store.env, schema="other").draw(MANY[0]))


def test_a_state_of_another_store_is_refused_and_changes_nothing(
    store: Store, reader: Reader, window: Callable[..., RemoteData]
) -> None:
    remote, local = window(reader.start(), ahead=1), ReplayData(store.env)
    same(remote.draw(MANY[0]), local.draw(MANY[0]))
    good = local.state_dict()
    bad = [
        {**good, "mark": [10_000, *good["mark"][1:]]},
        {**good, "rng": {}},
        {**good, "consumed": [[0, 1 << 50]]},
        {**good, "format": "none"},
        {},
    ]
    for state in bad:
        with pytest.raises(SpecError):
            remote.load_state_dict(state)
    same(remote.draw(MANY[0]), local.draw(MANY[0]))


def test_views_of_ones_own_travel_as_data(
    store: Store, reader: Reader, window: Callable[..., RemoteData]
) -> None:
    port = reader.start()
    clauses = {"segments": ["AUTO"], "robots": ["arm-1"], "max_version": 3}
    remote = window(port, views={"mine": clauses})
    local = ReplayData(store.env, views=with_views({"mine": View.parse("mine", clauses)}))
    request = Draw(6, mix={"mine": 0.5, "all": 0.5})
    same(remote.draw(request), local.draw(request))
    assert remote.count("mine") == local.count("mine") > 0
    with pytest.raises(ConfigError, match="unknown view; got yours"):
        remote.count("yours")
    for views, says in [({"v": {"color": 1}}, "unknown clause"), ({"all": {}}, "built in")]:
        with pytest.raises(ConfigError, match=says):
            window(port, views=views).draw(MANY[0])


# --- all that a local window offers ---------------------------------------------------------------


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_no_method_or_option_of_a_local_window_is_missing() -> None:
    assert public(ReplayData) <= public(RemoteData)
    options = [set(inspect.signature(kind).parameters) for kind in (ReplayData, RemoteData)]
    assert options[0] - {"env"} <= options[1]
    for name in public(ReplayData) - {"stats"}:
        local, remote = (inspect.signature(getattr(k, name)) for k in (ReplayData, RemoteData))
        assert local == remote, name


PRIORITISED = (
    Draw(16, weigh=Weigh("priority", power=0.8, floor=0.01, beta=0.5)),
    Draw(6, unit="nstep", length=3, weigh=Weigh("priority", missing=0.1)),
    Draw(16),
)


def prioritised(data: Any, rounds: int, seed: int, again: Callable[[], None]) -> Iterator[Batch]:
    """Draw by priorities that follow from what was drawn, with guesses and questions in between."""
    choose, numbers = random.Random(seed), np.random.default_rng(seed)
    for _ in range(rounds):
        again()
        batch = data.draw(choose.choice(PRIORITISED))
        yield batch
        if choose.random() < 0.7:
            data.prioritise(batch.ids, numbers.random(len(batch.ids)) * 10)
        if choose.random() < 0.3:
            data.count("online")


def same_state(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        if name != "priorities":
            assert mine[name] == json.loads(json.dumps(value))
            continue
        for part in ("ids", "values"):
            assert mine[name][part].dtype == value[part].dtype
            assert mine[name][part].tolist() == value[part].tolist()


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_priorities_are_those_of_a_local_window(
    store: Store, reader: Reader, window: Callable[..., RemoteData], ahead: int
) -> None:
    local = ReplayData(store.env, seed=7)
    remote = window(reader.start(), seed=7, ahead=ahead)
    assert isinstance(remote, Priorities)
    runs = prioritised(remote, 40, 1, lambda: None), prioritised(local, 40, 1, lambda: None)
    for mine, theirs in zip(*runs, strict=True):
        same(mine, theirs)
        same_state(remote.state_dict(), local.state_dict())
    assert local.state_dict()["priorities"]["ids"].size > 50
    if ahead:
        assert remote.stats()["ahead_used"] > 0, "what follows a priority is foreseen"


def test_priorities_outlast_the_reader_and_the_link(
    cutter: Any,
    store: Store,
    reader: Reader,
    window: Callable[..., RemoteData],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_priorities, "AT_ONCE", 7)
    cutter.target = reader.start()
    local, remote = ReplayData(store.env, seed=5), window(cutter.port, seed=5, ahead=2)
    seed = secrets.randbits(32)
    print("seed", seed)
    choose, rounds = random.Random(seed), iter(range(1000))

    def trouble() -> None:
        if next(rounds) % 8 == 5:
            reader.stop()
            reader.start()
        elif choose.random() < 0.5:
            threading.Timer(choose.random() * 0.01, cutter.cut).start()

    runs = prioritised(remote, 40, 1, trouble), prioritised(local, 40, 1, lambda: None)
    for mine, theirs in zip(*runs, strict=True):
        same(mine, theirs)
    same_state(remote.state_dict(), local.state_dict())
    assert remote.stats()["dialled"] > 5


def test_either_kind_of_window_takes_over_priorities(
    store: Store, reader: Reader, window: Callable[..., RemoteData]
) -> None:
    port = reader.start()
    whole = ReplayData(store.env, seed=3)
    expected = [b for _ in range(3) for b in prioritised(whole, 6, 9, lambda: None)]
    first, second, third = ReplayData(store.env, seed=3), window(port), ReplayData(store.env)
    found = list(prioritised(first, 6, 9, lambda: None))
    second.load_state_dict(first.state_dict())
    found += prioritised(second, 6, 9, lambda: None)
    third.load_state_dict(second.state_dict())
    found += prioritised(third, 6, 9, lambda: None)
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs)
    second.load_state_dict(ReplayData(store.env, seed=3).state_dict())
    assert "priorities" not in second.state_dict(), "those before belong to another life"
    same(second.draw(PRIORITISED[0]), ReplayData(store.env, seed=3).draw(PRIORITISED[0]))


def test_priorities_that_were_not_heard_to_be_taken_are_undone(store: Store) -> None:
    request = PRIORITISED[0]
    window, never = ServedData(store.env, seed=1), ReplayData(store.env, seed=1)
    answers = Answers(window, 0, batch_bytes=1 << 20, kept_bytes=1 << 20)
    ids = never.draw(request).ids
    assert decoded(answers.answer(ask(1, 0, pb.DATA_KIND_DRAW, request)))[0] == ids.tolist()
    for number, value in ((2, 5.0), (3, 1e6)):
        values = np.full(len(ids), value, np.float32)
        said = pb.DataAsk(
            kind=pb.DATA_KIND_PRIORITISE,
            number=number,
            delivered=number - 1,
            content=data_wire.encode_priorities(ids, values),
        )
        once, twice = answers.answer(said), answers.answer(said)
        assert once == twice
        assert b"priorities" not in once, "states are sent with every batch"
    never.prioritise(ids, np.full(len(ids), 5.0))
    got = decoded(answers.answer(ask(3, 2, pb.DATA_KIND_DRAW, request)))[0]
    assert got == never.draw(request).ids.tolist()
    assert answers.figures["undone"] == 1


def test_priorities_that_are_none_are_refused_in_the_same_words(
    store: Store, reader: Reader, window: Callable[..., RemoteData]
) -> None:
    remote, local = window(reader.start()), ReplayData(store.env)
    ids = remote.draw(MANY[0]).ids
    same(remote.draw(MANY[1]), [local.draw(request) for request in MANY[:2]][1])
    bad = [
        (ids.astype(np.int64), np.ones(16)),
        (ids, np.ones(15)),
        (ids, np.full(16, np.nan)),
        (ids, np.full(16, "much")),
    ]
    for said_ids, said_values in bad:
        said = []
        for data in (remote, local):
            with pytest.raises(SpecError) as error:
                data.prioritise(said_ids, said_values)
            said.append(str(error.value))
        assert said[0] == said[1]
    gone = np.array([2**63 - 1], np.uint64)
    for data in (remote, local):
        data.prioritise(gone, np.ones(1))  # of a step that left the store: passed over
    same(remote.draw(PRIORITISED[0]), local.draw(PRIORITISED[0]))


def test_an_empty_store_has_nothing_to_prioritise(
    tmp_path: Path, serving: Callable[[Make], Reader], window: Callable[..., RemoteData]
) -> None:
    with Store(tmp_path / "empty").open(create=True) as empty:
        reader = serving(lambda opening: ServedData(empty.env))
        said = []
        for data in (window(reader.start()), ReplayData(empty.env)):
            assert data.names() == []
            with pytest.raises(NotReady) as error:
                data.prioritise(np.zeros(1, np.uint64), np.ones(1))
            said.append(str(error.value))
        assert said[0] == said[1]
        reader.stop()


def test_names_and_refresh_are_those_of_a_local_window(
    store: Store,
    serving: Callable[[Make], Reader],
    window: Callable[..., RemoteData],
    make_fragment: Callable[..., Fragment],
) -> None:
    reader = serving(lambda o: ServedData(store.env, seed=o.seed, follow=o.follow))
    remote = window(reader.start(), follow=False, ahead=2)
    local = ReplayData(store.env, follow=False)
    for data in (remote, local):
        with pytest.raises(NotReady):
            data.draw(MANY[0])
        assert data.refresh()
    for k in (60, 65):
        for _ in range(3):
            same(remote.draw(MANY[0]), local.draw(MANY[0]))
        assert remote.names() == local.names() != []
        fill(store, make_fragment, k, k + 5)
        same(remote.draw(MANY[0]), local.draw(MANY[0]))
        assert remote.refresh() is local.refresh() is True
        assert remote.refresh() is local.refresh() is False
        same_state(remote.state_dict(), local.state_dict())
    same(remote.draw(MANY[0]), local.draw(MANY[0]))
    reader.stop()


class Sums:
    """A frozen encoder that counts what it was given."""

    hash = "sums"

    def __init__(self) -> None:
        self.seen = 0

    def encode(self, images: np.ndarray) -> np.ndarray:
        self.seen += len(images)
        flat = images.reshape(len(images), -1).astype(np.float32)
        return np.stack([flat.sum(1), flat.max(1), flat[:, 0] + 1], 1)


@pytest.mark.parametrize("cache_bytes", [0, 2000, 1 << 20])
def test_features_are_those_of_a_local_window(
    store: Store, reader: Reader, window: Callable[..., RemoteData], cache_bytes: int
) -> None:
    mine, theirs = Sums(), Sums()
    local = ReplayData(store.env, seed=4, encoders={"wrist": theirs})
    remote = window(reader.start(), seed=4, encoders={"wrist": mine}, cache_bytes=cache_bytes)
    for one, other in zip(script(remote, 25, 3), script(local, 25, 3), strict=True):
        same(one, other)
    assert remote.stats()["features_made"] == mine.seen >= theirs.seen > 0
    assert remote.stats()["feature_cache_bytes"] <= cache_bytes
    if cache_bytes == 1 << 20:
        assert mine.seen == theirs.seen, "each image once"
        mine.hash = "others"
        remote.draw(MANY[0])
        assert mine.seen > theirs.seen, "features of other weights are made anew"


def test_an_encoder_of_no_camera_is_refused_in_the_same_words(
    store: Store, reader: Reader, window: Callable[..., RemoteData]
) -> None:
    encoders = {"front": Sums()}
    said = []
    for data in (
        window(reader.start(), encoders=encoders),
        ReplayData(store.env, encoders=encoders),
    ):
        with pytest.raises(ConfigError) as error:
            data.draw(MANY[0])
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "encoder of no camera; got ['front']; allowed: wrist" in said[0]


def test_rows_that_could_not_be_encoded_are_not_consumed(
    store: Store, reader: Reader, window: Callable[..., RemoteData]
) -> None:
    whole = ReplayData(store.env)
    expected = [whole.consume(Draw(4)).ids.tolist() for _ in range(4)]
    port = reader.start()
    for make in (partial(window, port, ahead=2), partial(ReplayData, store.env)):
        encoder = Sums()
        data = make(encoders={"wrist": encoder})
        found = [data.consume(Draw(4)).ids.tolist() for _ in range(2)]
        encoder.encode = lambda images: images * np.nan  # type: ignore[method-assign]
        with pytest.raises(PluginError):
            data.consume(Draw(4))
        del encoder.encode
        found += [data.consume(Draw(4)).ids.tolist() for _ in range(2)]
        assert found == expected


def test_what_is_restored_comes_before_anything_is_drawn(store: Store) -> None:
    answers = Answers(ServedData(store.env), 0, batch_bytes=1 << 20, kept_bytes=1 << 20)
    ids = np.array(decoded(answers.answer(ask(1, 0, pb.DATA_KIND_DRAW, Draw(3))))[0], np.uint64)
    content = data_wire.encode_priorities(ids, np.ones(3, np.float32))
    said = pb.DataAsk(kind=pb.DATA_KIND_RESTORE, content=content)
    assert "restored before anything is drawn" in str(decoded(answers.answer(said))[0])
    ahead = ask(2, 1, pb.DATA_KIND_REFRESH, Draw(1), ahead=True, max_bytes=1 << 20)
    assert answers.answer(ahead) == SKIPPED, "only draws are foreseen"


# --- breaks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 2])
def test_no_draw_is_skipped_or_doubled_when_the_link_breaks(
    cutter: Any, log: Log, numbers: Reader, window: Callable[..., RemoteData], ahead: int
) -> None:
    log.row_bytes, log.size = 3000, 10_000
    cutter.target = numbers.start()
    local, remote = Numbers(log, 5), window(cutter.port, seed=5, ahead=ahead)
    seed = secrets.randbits(32)
    print("seed", seed)
    choose = random.Random(seed)
    requests = [Draw(4), Draw(40)]
    consumed: list[int] = []
    for _ in range(30):
        request = choose.choice(requests)
        if choose.random() < 0.5:
            threading.Timer(choose.random() * 0.01, cutter.cut).start()
        if choose.random() < 0.5:
            same(remote.draw(request), local.draw(request))
        else:
            consumed += remote.consume(request).ids.tolist()
            local.consume(request)
    assert consumed == list(range(len(consumed)))
    assert remote.stats()["dialled"] > 1
    assert numbers.figure("windows") == 1, "the session was found again, not made anew"


def test_an_answer_that_was_lost_is_said_again(
    cutter: Any, log: Log, numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    cutter.target = numbers.start()
    local, remote = Numbers(log), window(cutter.port, ahead=0)
    same(remote.draw(REQUESTS[0]), local.draw(REQUESTS[0]))

    def lose(number: int) -> None:
        log.before_draw = lambda number: None
        cutter.cut()  # it is drawn, but its learner does not hear of it

    log.before_draw = lose
    mine = remote.draw(REQUESTS[0])
    assert log.draws == 3
    assert numbers.figure("repeated") == 1
    same(mine, local.draw(REQUESTS[0]))
    assert log.draws == 4


def test_a_reader_that_was_restarted_is_told_where_we_are(
    log: Log, numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    local, remote = Numbers(log, 2), window(numbers.start(), seed=2, ahead=2)
    for k in range(12):
        if k % 3 == 1:
            numbers.stop()
            numbers.start()
        kind = pb.DATA_KIND_DRAW if k % 2 else pb.DATA_KIND_CONSUME
        got, state = answered(remote, kind, REQUESTS[0])
        assert json.dumps((got, state)) == json.dumps(answered(local, kind, REQUESTS[0]))


def test_a_reader_that_stays_away_is_not_waited_for_for_ever(
    numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    port = numbers.start()
    stopped = threading.Event()
    impatient = window(port, patience_s=0.0)
    patient = window(port, stopped=stopped)
    for data in (impatient, patient):
        data.draw(REQUESTS[0])
        data.draw(REQUESTS[1])  # what was foreseen is not this
    state = impatient.state_dict()
    numbers.stop()
    with pytest.raises(LinkError):
        impatient.draw(REQUESTS[2])
    threading.Timer(0.05, stopped.set).start()
    with pytest.raises(NotReady, match="we are to end"):
        patient.draw(REQUESTS[2])
    assert impatient.state_dict() == state, "a state needs no reader"
    numbers.start()
    stopped.clear()
    impatient._patience_s = GENEROUS_S
    assert len(impatient.draw(REQUESTS[0])) == len(patient.draw(REQUESTS[0])) == 3


@pytest.mark.parametrize("how", ["gone", "mute"])
def test_a_reader_that_is_away_is_not_waited_for_to_count(
    cutter: Any, log: Log, numbers: Reader, window: Callable[..., RemoteData], how: str
) -> None:
    """Whoever asks how many steps there are has weights to publish meanwhile."""
    cutter.target = numbers.start()
    data, local = window(cutter.port, answer_s=0.3), Numbers(log)
    same(data.draw(REQUESTS[0]), local.draw(REQUESTS[0]))
    known = data.count()
    if how == "gone":
        numbers.stop()
        cutter.cut()
    else:
        cutter.moving.clear()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(NotReady, match="does not say how many steps view 'all' holds") as no:
            data.count()
        assert time.monotonic() - began < GENEROUS_S / 4, "nearly as long as for a draw"
        assert re.search(rf"{known} when it last said it, \d+ s ago", str(no.value))
        assert "see to the replay reader" in str(no.value)
    with pytest.raises(NotReady, match="it never said"):
        data.count("demos")
    if how == "gone":
        numbers.start()
    cutter.moving.set()
    data._answer_s = GENEROUS_S
    assert data.count() == known
    same(data.draw(REQUESTS[0]), local.draw(REQUESTS[0]))


def test_what_is_on_its_way_is_kept_though_a_count_behind_it_is_late(
    log: Log, numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    """A batch that takes long is no reason to hang up, and to have it drawn again."""
    data, local = window(numbers.start(), answer_s=0.2), Numbers(Log())
    drawing, go_on = threading.Event(), threading.Event()

    def slowly(number: int) -> None:
        if number > 1:  # the one that is drawn ahead
            drawing.set()
            assert go_on.wait(GENEROUS_S)

    log.before_draw = slowly
    same(data.draw(REQUESTS[0]), local.draw(REQUESTS[0]))
    assert drawing.wait(GENEROUS_S)
    for _ in range(3):
        with pytest.raises(NotReady, match="no answer came"):
            data.count()
    go_on.set()
    same(data.draw(REQUESTS[0]), local.draw(REQUESTS[0]))
    data._answer_s = GENEROUS_S
    assert data.count() == local.count()
    assert (data.stats()["dialled"], data.stats()["ahead_used"]) == (1, 1)


def test_without_a_reader_there_is_no_state_before_the_first_draw(
    numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    port = numbers.start()
    numbers.stop()
    data = window(port, answer_s=0.1)
    with pytest.raises(NotReady, match="does not say where draws begin"):
        data.state_dict()
    numbers.start()
    data._answer_s = GENEROUS_S
    assert data.state_dict()


# --- ahead ----------------------------------------------------------------------------------------


def test_the_next_batch_is_drawn_and_sent_while_the_learner_works(
    log: Log, numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    """The reader is slow without end until it is told to go on: nothing here depends on a clock."""
    began, go_on = threading.Event(), threading.Event()

    def slow(number: int) -> None:
        if number == 2:
            began.set()
            assert go_on.wait(GENEROUS_S)

    log.before_draw = slow
    data = window(numbers.start(), ahead=1)
    data.draw(REQUESTS[0])
    # The learner works on the first batch; the second one is under way without having been asked.
    assert began.wait(GENEROUS_S), "nothing was drawn ahead"
    state = data.state_dict()
    go_on.set()
    wait_until(lambda: data._ahead[0].done)
    assert data.state_dict() == state, "what was only foreseen is not part of the state"
    log.before_draw = lambda number: pytest.fail("it had to be drawn when it was wanted")
    data._look_ahead = lambda last: None  # type: ignore[method-assign]  # of the third
    data.draw(REQUESTS[0])
    assert data.stats()["ahead_used"] == 1


def test_nothing_is_drawn_ahead_where_that_was_not_wanted(
    log: Log, numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    log.row_bytes = 100_000
    port = numbers.start()
    for data in (window(port, ahead=0), window(port, ahead=3, ahead_bytes=200_000)):
        before = log.draws
        for _ in range(3):
            data.draw(REQUESTS[0])
            data.count()  # answered after all that was asked before it
        assert log.draws == before + 3


def test_requests_that_take_turns_are_foreseen(
    numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    data = window(numbers.start(), ahead=2)
    for k in range(20):
        data.draw(REQUESTS[k % 2])
    assert data.stats()["ahead_used"] >= 16
    with pytest.raises(ConfigError, match=r"batches to draw ahead; got 9; allowed: 0\.\.8"):
        window(1, ahead=9)


def test_what_nobody_wants_any_more_is_not_sent(
    log: Log, numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    local = Numbers(Log(), 4)
    log.row_bytes = local.log.row_bytes = 1 << 20
    data = window(numbers.start(), seed=4, ahead=1)
    assert numbers.server is not None
    service: Any = numbers.server._services[0]

    def overtaken() -> bool:
        (session,) = service._sessions.values()
        return bool(session._overtaken == 4)  # opening, draw, guess, draw

    log.before_draw = lambda number: wait_until(lambda: number != 2 or overtaken())
    same(data.draw(Draw(20)), local.draw(Draw(20)))
    assert data._link is not None
    before = data._link.bytes
    same(data.draw(Draw(2)), local.draw(Draw(2)))
    assert numbers.figure("undone") == 1
    assert data._link.bytes - before < 20 << 20


def test_a_guess_that_came_to_nothing_is_asked_again(
    log: Log, numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    log.size = 6
    data = window(numbers.start(), ahead=2)
    assert data.consume(Draw(4)).ids.tolist() == [0, 1, 2, 3]
    numbers.wait_for("skipped", 2)
    log.size = 20
    assert data.consume(Draw(4)).ids.tolist() == [4, 5, 6, 7]


# --- bounds ---------------------------------------------------------------------------------------


def test_large_batches_come_in_parts(
    log: Log, numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    log.row_bytes = 1 << 20
    data = window(numbers.start(), ahead=1)
    for _ in range(2):
        batch = data.draw(Draw(50))
        assert batch.observation["o"].nbytes == 50 << 20
        assert (batch.observation["o"] == 7).all()
    assert data.stats()["ahead_used"] == 1


@contextmanager
def silent(port: int, credentials: Credentials, *, ahead: int = 0) -> Iterator[grpc.Call]:
    """Hold a stream on which much is asked and nothing is read."""
    tunnel = DirectTunnel(Endpoints(reader=f"127.0.0.1:{port}"), credentials)
    stub = data_pb2_grpc.DataStub(tunnel.channel("reader"))  # type: ignore[no-untyped-call]
    content = data_wire.encode_opening(Opening(), None)
    over = threading.Event()

    def requests() -> Iterator[pb.DataRequest]:
        name = secrets.token_hex(16)
        yield pb.DataRequest(open=pb.DataOpen(session=name, content=content))
        for number in range(1, ahead + 1):
            more = {"ahead": True, "max_bytes": 1 << 30}
            yield pb.DataRequest(ask=ask(number, 0, pb.DATA_KIND_DRAW, Draw(20), **more))
        over.wait(GENEROUS_S)

    call = stub.Attach(requests())
    try:
        yield call
    finally:
        over.set()
        call.cancel()
        tunnel.close()


def test_a_learner_that_does_not_read_stops_nobody(
    log: Log,
    numbers: Reader,
    window: Callable[..., RemoteData],
    credentials: Callable[[str], Credentials],
) -> None:
    log.row_bytes = 1 << 20
    port = numbers.start(Limits(kept_bytes=100 << 20))
    with silent(port, credentials("learner"), ahead=200):
        # Of 20 MiB each it is given what it may keep, and no more is even read from it.
        wait_until(lambda: numbers.figure("skipped") >= CREDIT - 5)
        assert numbers.figure("batches") <= 5
        log.row_bytes = 8
        other = window(port)
        for _ in range(20):
            other.draw(REQUESTS[0])
        assert numbers.figure("batches") + numbers.figure("skipped") <= CREDIT + 1 + 25


def test_no_more_learners_than_there_is_room_for(
    numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    port = numbers.start(Limits(sessions=2))
    first, second = window(port, ahead=0), window(port, "kim")
    for data in (first, second):
        data.draw(REQUESTS[0])
    with pytest.raises(LinkError, match=r"as many learners.*got 2; allowed: 2 sessions"):
        window(port, patience_s=0.0).draw(REQUESTS[0])
    first._hang_up()  # as if its connection broke
    numbers.wait_for("streams", 1)
    window(port, ahead=0).draw(REQUESTS[0])
    assert numbers.figure("sessions") == 2, "what was left made room"
    second.close()
    numbers.wait_for("sessions", 1)
    first.draw(REQUESTS[0])


def test_a_session_that_was_left_is_dropped(
    numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    data = window(numbers.start(Limits(detached_s=0.02)), ahead=0)
    local = Numbers(Log())
    same(data.draw(REQUESTS[0]), local.draw(REQUESTS[0]))
    data._hang_up()
    numbers.wait_for("sessions", 0)
    same(data.draw(REQUESTS[0]), local.draw(REQUESTS[0]))
    assert numbers.figure("windows") == 2


def test_a_session_without_questions_is_ended_and_comes_back(
    numbers: Reader, window: Callable[..., RemoteData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "BEAT_S", 0.01)
    data = window(numbers.start(Limits(idle_s=0.0, detached_s=0.02)), ahead=0)
    local = Numbers(Log())
    for _ in range(3):
        same(data.draw(REQUESTS[0]), local.draw(REQUESTS[0]))
        numbers.wait_for("sessions", 0)


def test_a_reader_that_takes_long_is_waited_for(
    log: Log,
    numbers: Reader,
    window: Callable[..., RemoteData],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(silence, "BEAT_S", 0.02)
    log.before_draw = lambda number: time.sleep(1.0)
    data = window(numbers.start(), ahead=0, silence_s=0.4)
    data.draw(REQUESTS[0])
    assert data.stats()["dialled"] == 1


def test_a_reader_that_says_nothing_is_dialled_again(
    cutter: Any, log: Log, numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    cutter.target = numbers.start()
    data, local = window(cutter.port, ahead=0, silence_s=0.2), Numbers(log)
    same(data.draw(REQUESTS[0]), local.draw(REQUESTS[0]))
    cutter.moving.clear()
    threading.Timer(0.5, cutter.moving.set).start()
    same(data.draw(REQUESTS[0]), local.draw(REQUESTS[0]))
    assert data.stats()["dialled"] > 1


def test_nobody_else_draws(numbers: Reader, window: Callable[..., RemoteData]) -> None:
    port = numbers.start()
    for name in ("host-1", "ada", "eve", "teleop"):
        with pytest.raises(SecurityError, match="may not call"):
            window(port, name).draw(REQUESTS[0])
    for name in ("learner", "kim"):
        assert len(window(port, name).draw(REQUESTS[0])) == 3
    assert numbers.figure("denied") == 4


def test_a_session_belongs_to_whoever_began_it(
    numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    port = numbers.start()
    mine, theirs = window(port, seed=1, ahead=0), window(port, "kim", seed=1, ahead=0)
    mine.draw(REQUESTS[0])
    theirs._session = mine._session
    theirs.draw(REQUESTS[0])
    assert numbers.figure("windows") == 2
    assert numbers.figure("sessions") == 2


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([pb.DataRequest()], "begins with DataOpen"),
        ([pb.DataRequest(close=pb.DataClose())], "begins with DataOpen"),
        ([pb.DataRequest(open=pb.DataOpen(session="../x"))], "name of a session"),
        ([pb.DataRequest(open=pb.DataOpen(session="0" * 32, content=bytes(9 << 20)))], "beginning"),
        (["open", pb.DataRequest()], "only asks are expected"),
        (["open", "open"], "only asks are expected"),
        (["open", pb.DataRequest(ask=pb.DataAsk(content=bytes(1 << 17)))], "too large"),
    ],
)
def test_what_is_no_session_is_refused(
    numbers: Reader, credentials: Callable[[str], Credentials], messages: list[Any], says: str
) -> None:
    content = data_wire.encode_opening(Opening(), None)
    good = pb.DataRequest(open=pb.DataOpen(session="0" * 32, content=content))
    requests = [good if message == "open" else message for message in messages]
    tunnel = DirectTunnel(Endpoints(reader=f"127.0.0.1:{numbers.start()}"), credentials("learner"))
    stub = data_pb2_grpc.DataStub(tunnel.channel("reader"))  # type: ignore[no-untyped-call]
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Attach(iter(requests), timeout=GENEROUS_S))
    tunnel.close()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in refused.value.details()


def test_garbage_inside_is_answered_and_the_session_lives(
    numbers: Reader, window: Callable[..., RemoteData]
) -> None:
    data = window(numbers.start(), ahead=0)
    data.draw(REQUESTS[0])
    for content in (b"", b"USAR" + bytes(60), data_wire.encode_view("all")):
        wrong = pb.DataAsk(kind=pb.DATA_KIND_DRAW, number=data._delivered + 1, content=content)
        answer = data._ask(wrong).wait()
        assert isinstance(answer.error, DamageError | SpecError)
        data._delivered += 1
    assert len(data.draw(REQUESTS[0])) == 3


def test_a_reader_that_lies_about_sizes_is_not_believed(
    window: Callable[..., RemoteData], credentials: Callable[[str], Credentials], allow: AllowList
) -> None:
    class Liar(DataService):
        parts: tuple[pb.DataPart, ...] = ()

        def Attach(self, request_iterator: Any, context: Any) -> Iterator[pb.DataPart]:  # noqa: N802
            yield from self.parts

    liar = Liar(lambda opening: Numbers(Log()))
    with serve([liar], credentials=credentials("replay"), allow=allow) as server:
        for parts, says in [
            ((pb.DataPart(total=1 << 40, data=b"x"),), "answer is too large"),
            ((pb.DataPart(total=10, offset=1, data=b"x"),), "do not follow each other"),
            ((pb.DataPart(total=10, data=b"x" * 11),), "do not follow each other"),
            ((pb.DataPart(total=2, data=b"x"), pb.DataPart(total=3, offset=1)), "do not follow"),
            ((pb.DataPart(total=4, data=b"abcd"),), "message length"),
        ]:
            liar.parts = parts
            with pytest.raises(DamageError, match=says):
                window(server.port).draw(REQUESTS[0])


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.system
def test_a_reader_that_is_killed_between_batches_changes_nothing(
    tmp_path: Path,
    pki: Path,
    make_fragment: Callable[..., Fragment],
    window: Callable[..., RemoteData],
) -> None:
    """Two processes, mutual TLS, kill -9; compared with a window that was never interrupted."""
    with Store(tmp_path / "store").open(create=True) as store:
        fill(store, make_fragment, 0, 60)
        local = ReplayData(store.env, seed=11)
        expected = list(script(local, 12, 4))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        process = start_reader(tmp_path, pki, port)
        try:
            remote = window(port, seed=11, ahead=2, silence_s=5.0)
            found = []
            for k, batch in enumerate(script(remote, 12, 4)):
                found.append(batch)
                if k % 5 == 2:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    process = start_reader(tmp_path, pki, port)
            for mine, theirs in zip(found, expected, strict=True):
                same(mine, theirs)
            assert remote.state_dict() == json.loads(json.dumps(local.state_dict()))
            assert remote.stats()["dialled"] >= 3
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(GENEROUS_S) == 0


def start_reader(root: Path, pki: Path, port: int) -> "subprocess.Popen[bytes]":
    """Start the process that ``user-system up`` would."""
    link = {"name": "replay", "pki": str(pki), "reader": f"127.0.0.1:{port}"}
    link |= {"hub": "127.0.0.1:1", "replay": "127.0.0.1:1", "fresh": "127.0.0.1:1"}
    config = root / "reader.json"
    config.write_text(json.dumps({"link": link, "directory": str(root / "store")}))
    argv = [sys.executable, "-m", "user_system.cluster.reader_host", str(config)]
    process = subprocess.Popen(argv)
    deadline = time.monotonic() + GENEROUS_S
    while True:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return process
        assert process.poll() is None, "the reader ended"
        assert time.monotonic() < deadline, "the reader does not listen"
        time.sleep(0.05)
