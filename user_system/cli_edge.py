"""``user-system edge``: a robot host that is a machine of its own; each command calls the package.

It needs neither Ray nor a page, and torch only where a policy does.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

edge_app = typer.Typer(help="A robot host that is a machine of its own.", no_args_is_help=True)


@edge_app.command()
def join(
    line: Annotated[
        str,
        typer.Argument(
            metavar="LINE",
            help="As `user-system enrol create` prints it; -: it is read from the standard input, "
            "where no other user of this machine sees it.",
        ),
    ],
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="Where it keeps everything; else /var/lib/user-system/NAME as root, "
            "~/.local/share/user-system/NAME otherwise.",
        ),
    ] = None,
    only: Annotated[
        bool, typer.Option("--only", help="Write everything down and start nothing.")
    ] = False,
) -> None:
    """Make this machine a robot host and go live: keys, certificate, config, unit."""
    from user_system.cluster import join as joining
    from user_system.cluster import machine, resident

    machine.check_packages()
    made = joining.make(sys.stdin.readline() if line == "-" else line, directory)
    name, root = made.file.name, made.home.root
    print(f"{name} has joined run {made.file.facts.run!r}; everything of it is in {root}")
    print(f"unit: {made.unit}")
    if only:
        print(f"start it: {made.start_line}")
        return
    if made.managed:
        joining.start(made, print)
        return
    print("systemd does not run this machine: it runs here until Ctrl-C")
    _log()
    raise typer.Exit(resident.run(root, _say))


@edge_app.command()
def run(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="As `edge join` made it.")],
) -> None:
    """Run a robot host that has joined, until told to stop; goes on while the head is away."""
    from user_system.cluster import machine, resident

    machine.check_packages()
    _log()
    raise typer.Exit(resident.run(directory, _say))


@edge_app.command()
def stop(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A robot host's, or that of a run on this machine."),
    ],
) -> None:
    """Stop all robots of this machine at once; needs neither the link nor the head."""
    from user_system.core.errors import MissingError
    from user_system.edge import stop as stopping

    hosts = stopping.found(directory) if directory.is_dir() else []
    if not hosts:
        raise MissingError(f"no agent of a robot host listens in {directory}")
    for host in hosts:
        stopping.ring(host, "somebody at the robot host")
        _say(f"{host}: stopped; a person releases its robots on the page")


@edge_app.command()
def leave(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="As `edge join` made it.")],
    discard: Annotated[
        bool, typer.Option("--discard", help="Delete also what the head has not got.")
    ] = False,
) -> None:
    """Leave for good: end what runs, be revoked at the head, remove unit, keys and configs.

    Works while the head is away too, and then says what is left to do there (status 1).
    """
    from user_system.cluster import leave as leaving

    if not leaving.leave(directory, _say, discard=discard):
        raise typer.Exit(1)


def _say(text: str) -> None:
    print(text, flush=True)


def _log() -> None:
    logging.basicConfig(
        level=logging.INFO,
        format="%(levelname).1s %(name)s: %(message)s",  # systemd's journal adds the time
        stream=sys.stderr,
    )
