"""``user-system replay``: what keeps a store in order; each command calls the package."""

import getpass
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from user_system.cli_replay import Json, Store, bar, table

Target = Annotated[Path, typer.Argument(metavar="TARGET", help="What is made; not there yet.")]


def stats(
    store: Store,
    episodes: Annotated[bool, typer.Option("--episodes", help="List every episode.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a store holds; it may be in use."""
    from user_system.replay import overview

    with bar() as progress:
        found = overview.look(store, progress)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    for line in found.lines():
        print(line)
    if episodes:
        for line in found.episode_lines():
            print(line)


def verify(store: Store, as_json: Json = False) -> None:
    """Read every byte and compare every checksum; status 1 where something is damaged."""
    from user_system.replay import verify as checking

    with bar() as progress:
        found = checking.verify(store, progress=progress)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        print(
            f"{store}: {found.records} records and {found.images} images, "
            f"{found.size / 1e6:.1f} MB, {len(found.damaged)} damaged"
        )
        for line in found.damaged:
            print(f"  {line}")
    raise typer.Exit(0 if found.ok else 1)


def salvage(
    store: Store,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to; else it takes the store's place, which moves aside."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Take what is whole out of a damaged store; the damaged one is kept."""
    from user_system.replay import salvage as salvaging
    from user_system.replay import verify as checking

    target = to or store.with_name(f"{store.name}.salvaged")
    with bar() as progress:
        done = salvaging.salvage(store, target, progress=progress)
    aside = None
    if to is None:
        aside = checking.replace(store, target)
        target = store
    if as_json:
        print(json.dumps({**asdict(done), "aside": aside and str(aside)}, indent=1))
        return
    print(
        f"{target}: {done.records} records with {done.steps} steps, {done.images} images, "
        f"{done.labels} labels; lost: {done.lost_records} records, {done.lost_images} images"
    )
    if aside is not None:
        print(f"the damaged store is kept as {aside}")


def compact(store: Store, as_json: Json = False) -> None:
    """Write a store anew, in today's format and without what was removed; takes its size again."""
    from user_system.replay import rewrite

    with bar() as progress:
        done = rewrite.compact(store, progress=progress)
    _say(done, as_json, f"{store}: {done.records} records with {done.steps} steps")


def merge(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Made if it is not there.")],
    sources: Annotated[list[Path], typer.Argument(metavar="STORE...", help="What goes into it.")],
    as_json: Json = False,
) -> None:
    """Write what several stores hold into one; what it has already is not doubled."""
    from user_system.replay import rewrite

    with bar() as progress:
        done = rewrite.rewrite(sources, target, progress=progress)
    _say(
        done,
        as_json,
        f"{target}: {done.records} records with {done.steps} steps and {done.labels} labels came "
        f"in, {done.repeated} were there already, {done.damaged} values were damaged and left out, "
        f"{done.backwards} records go back in time",
    )
    raise typer.Exit(1 if done.damaged or done.backwards else 0)


def backup(store: Store, target: Target) -> None:
    """Copy a store as it is at this moment, also while it is written to, and check the copy."""
    from user_system.replay import backup as copying

    with bar() as progress:
        copying.backup(store, target, progress=progress)
    print(f"{target}: checked")


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `backup` made.")],
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Where to; nothing may be there.")],
) -> None:
    """Put a checked backup where a store was; never overwrites one."""
    from user_system.replay import backup as copying

    with bar() as progress:
        copying.restore(source, store, progress=progress)
    print(f"{store}: restored")


def delete(
    store: Store,
    episode: Annotated[
        str, typer.Argument(metavar="EPISODE", help="`stats --episodes` lists them.")
    ],
    why: Annotated[str, typer.Option(help="Stays in the store's books.")],
    who: Annotated[str, typer.Option(help="Your name; else the one you are logged in by.")] = "",
) -> None:
    """Remove an episode for good; `compact` then takes its bytes off the disk as well."""
    from user_system.cluster import auditing
    from user_system.core.deeds import Deed
    from user_system.replay.store import Store as Writer

    with Writer(store).open() as writer:
        count = writer.delete(episode, who=who or getpass.getuser(), why=why)
    # The store's own books have it already; the run's log is where somebody will look for it.
    pki = store.resolve().parent / "pki"
    auditing.note(pki, Deed.REPLAY_DELETE, episode=episode, why=why, on_behalf_of=who)
    print(f"{store}: {count} fragments of {episode} removed; `compact` takes them off the disk")


Spool = Annotated[
    Path, typer.Argument(metavar="SPOOL", help="Of a robot host, e.g. runs/demo/edge/host-1.")
]


def spool(
    directory: Spool,
    store: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="Whatever is a stranger to this one is stuck, too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what waits on a robot host, and what is stuck there and why; it may be in use."""
    from user_system.cluster import spools
    from user_system.replay.waiting import COLUMNS

    found, journals = spools.look(directory, store)
    if as_json:
        print(json.dumps({**asdict(found), "journals": journals}, indent=1))
        return
    for line in found.lines():
        print(line)
    for producer, size in journals.items():
        if size:
            print(
                f"{producer}: {size / 1e6:.1f} MB in its journal are carried on by the next start"
            )
    now_ns = time.time_ns()
    if found.waiting:
        table(COLUMNS, [source.line(now_ns) for source in found.waiting])
    if found.stuck:
        print(
            f"`user-system replay adopt {directory} STORE --producer NEW` takes what is stuck out"
        )


def adopt(
    directory: Spool,
    store: Store,
    producer: Annotated[
        str, typer.Option(metavar="NEW", help="Name that the robot gets in the store.")
    ],
    source: Annotated[
        str, typer.Option("--from", metavar="OLD", help="Only what was recorded under this name.")
    ] = "",
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also what is not stuck; its head may have some of it already."),
    ] = False,
    create: Annotated[bool, typer.Option("--create", help="Make the store if need be.")] = False,
    as_json: Json = False,
) -> None:
    """Move what is stuck in a spool into a store, under a new name; exactly once, however it ends.

    Neither may be in use. Repeat it where it was interrupted.
    """
    from user_system.cluster import spools

    choice = spools.Choice(source, everything)
    with bar() as progress:
        moved = spools.adopt(directory, store, producer, choice, create=create, progress=progress)
    done = moved.done
    if as_json:
        print(json.dumps(asdict(moved), indent=1))
    else:
        print(
            f"{store}: {done.fragments} fragments with {done.steps} steps came in as {producer}, "
            f"{done.repeated} were there already, {done.backwards} go back in time; {moved.aside} "
            "were damaged and stay in the spool, set aside"
        )
        for name, epoch in moved.left:
            print(f"{name}/{epoch} waits in the spool: it is not known to be stuck, or not chosen")
    idle = not done.fragments + done.repeated and bool(moved.left)
    raise typer.Exit(1 if idle or moved.aside or done.backwards else 0)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (
        *(stats, verify, salvage, compact, merge, backup, restore, delete),
        *(spool, adopt),
    ):
        app.command(command.__name__)(command)


def _say(done: Any, as_json: bool, text: str) -> None:
    print(json.dumps(asdict(done), indent=1) if as_json else text, file=sys.stdout)
