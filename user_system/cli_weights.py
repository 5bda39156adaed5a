"""``user-system weights``: the versions of a run's policies, and the way back to an older one."""

import json
from pathlib import Path
from typing import Annotated

import typer

from user_system.cli_replay import Json, table

weights_app = typer.Typer(help="Versions of a run's policies.", no_args_is_help=True)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run that is up.")]


@weights_app.command("list")
def weights_list(
    run: Run,
    policy: Annotated[str, typer.Argument(metavar="[POLICY]", help="None given: all.")] = "",
    as_json: Json = False,
) -> None:
    """List the versions that are kept."""
    from comms.weights import list_versions
    from user_system.cluster import dial, runs, status

    with dial.tunnel(status.link(runs.choose(run).root)) as way:
        found = list_versions(way, policy)
    rows = [
        {
            "policy": v.policy,
            "version": v.version,
            "mb": round(v.bytes / 1e6, 3),
            "age_s": round(v.age_s, 1),
            "updates": int(v.notes.get("updates", 0)),
            "hash": v.hash[:12],
        }
        for v in found
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    columns = ("policy", "version", "mb", "age_s", "updates", "hash")
    table(columns, [tuple(str(row[name]) for name in columns) for row in rows])


@weights_app.command("rollback")
def weights_rollback(
    run: Run,
    policy: Annotated[str, typer.Argument(help="Whose weights, e.g. rlpd.")],
    version: Annotated[int, typer.Argument(help="To which version to go back.", min=1)],
) -> None:
    """Make the content of an older version a new version, with which robots act from then on.

    The learner goes on learning, and publishes newer ones: stop or freeze it first to stay there.
    """
    from comms.weights import roll_back
    from user_system.cluster import dial, runs, status

    with dial.tunnel(status.link(runs.choose(run).root)) as way:
        new = roll_back(way, policy, version)
    print(f"{policy}: version {new} has the content of version {version}")
