"""``user-system enrol``: who may join a run, who did, and who may no longer."""

import getpass
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from user_system.cli_replay import Json, table
from user_system.core.errors import ConfigError

if TYPE_CHECKING:
    from comms.credentials import Role

enrol_app = typer.Typer(help="Hosts that join a run: invite, list, revoke, renew.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the host, e.g. lab-1.")]
Run = Annotated[
    Path | None, typer.Option("--run", metavar="RUN", help="Directory; the only run that is up.")
]


@enrol_app.command("create")
def create(
    name: Name,
    role: Annotated[
        str, typer.Option(help="robot, learner, engineer, operator or viewer.")
    ] = "robot",
    run: Run = None,
    lives: Annotated[str, typer.Option(help="How long it is good for, 1min to 7d.")] = "1h",
    at: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="The page as the new host reaches it.")
    ] = "",
    here: Annotated[
        bool, typer.Option("--here", help="Its processes run on this host: no line, new keys.")
    ] = False,
) -> None:
    """Print one line that lets one host join, once, soon."""
    from user_system.cluster import guests

    root = guests.find(run)
    chosen = _role(role)
    if here:
        guests.restore(root, getpass.getuser(), name, chosen)
        print(f"{name} has new credentials in {root / 'pki'}")
        return
    invitation = guests.invite(root, getpass.getuser(), name, chosen, guests.lifetime(lives), at)
    typer.echo(
        f"On {name}, within {lives} (whoever has this line can join once as {name}):", err=True
    )
    print(f"user-system edge join {invitation.line()}")


@enrol_app.command("list")
def listing(run: Run = None, as_json: Json = False) -> None:
    """List who is enrolled, invited or revoked."""
    from user_system.cluster import guests

    found = guests.guests(guests.find(run))
    if as_json:
        print(json.dumps([asdict(guest) for guest in found], indent=1))
        return
    table(
        ("name", "role", "state", "expires in", "last seen"),
        [
            (g.name, g.role, g.state, _span(g.left_s), f"{_span(g.seen_s)} ago" if g.seen_s else "")
            for g in found
        ],
    )


@enrol_app.command("revoke")
def revoke(name: Name, run: Run = None) -> None:
    """Refuse a host from now on; its connections are cut within two seconds."""
    from user_system.cluster import guests

    guests.revoke(guests.find(run), getpass.getuser(), name)
    print(f"{name} is refused from now on; to let it in again, enrol it anew")


@enrol_app.command("renew")
def renew(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Whose; none: all here.")
    ] = None,
    run: Run = None,
) -> None:
    """Renew certificates before they are due: at the head, or a robot host's own."""
    from user_system.cluster import guests

    root = guests.find(run)
    for name, left_s in guests.renew_all(root, getpass.getuser(), list(names or ())).items():
        print(f"{name}: good for {_span(left_s)}")


def _role(text: str) -> "Role":
    from comms.credentials import Role

    try:
        return Role(text)
    except ValueError:
        allowed = ", ".join(role.value for role in Role if role is not Role.SERVICE)
        raise ConfigError("not a role", got=repr(text), allowed=allowed) from None


def _span(seconds: float | None) -> str:
    """Return a span of time as people say it."""
    if seconds is None:
        return ""
    if seconds < 0:
        return f"-{_span(-seconds)}"
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
