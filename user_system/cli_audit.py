"""``user-system audit``: who did what, and whether anybody has touched what is written of it."""

from pathlib import Path
from typing import Annotated

import typer

from user_system.cli_replay import Json, table


def audit(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Directory, e.g. runs/demo.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Say only whether it is whole, and its head.")
    ] = False,
    head: Annotated[
        str, typer.Option(metavar="HASH", help="It must go on from this one, noted earlier.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Print the audit log of a run and verify it; status 1 where it was tampered with."""
    import json

    from user_system.cluster import auditing, runs

    root = run if run is not None else runs.choose(None).root
    checked = auditing.check(root, head)
    if as_json:
        lines = [] if verify else list(auditing.read(root))
        print(json.dumps({**vars(checked), "records": lines}, indent=1))
        return
    if not verify:
        table(auditing.COLUMNS, [auditing.cells(record) for record in auditing.read(root)])
    print(f"{checked.count} records, whole; head {checked.head}")
    if checked.waiting:
        print(f"{checked.waiting} deeds of the command line wait for the hub to run")
