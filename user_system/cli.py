"""The command line. Each command imports what it needs, so that ``--help`` is immediate."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from user_system.cli_audit import audit
from user_system.cli_edge import edge_app
from user_system.cli_enrol import enrol_app
from user_system.cli_replay import replay_app, table
from user_system.cli_store import add_to
from user_system.cli_weights import weights_app
from user_system.core.errors import ConfigError, MissingError, SecurityError, UserSystemError

app = typer.Typer(
    name="user-system",
    help="Real robots learn online: robots beside GPUs, durable experience, people in the loop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
plugins_app = typer.Typer(help="Plugins that are installed.", no_args_is_help=True)
robots_app = typer.Typer(help="Robots of a run, and the kinds there are.", no_args_is_help=True)
app.command("audit")(audit)
app.add_typer(plugins_app, name="plugins")
app.add_typer(robots_app, name="robots")
app.add_typer(edge_app, name="edge")
add_to(replay_app)
app.add_typer(enrol_app, name="enrol", no_args_is_help=True)
app.add_typer(replay_app, name="replay", no_args_is_help=True)
app.add_typer(weights_app, name="weights")

Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a value of the manifest."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Run = Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Directory, e.g. runs/demo.")]


@app.command()
def up(
    file: Annotated[
        Path | None, typer.Argument(help="The manifest, e.g. deploy/demo.yaml.")
    ] = None,
    settings: Setting = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with a run.")
    ] = None,
) -> None:
    """Start a system and show how it does; Ctrl-C ends it."""
    began = time.monotonic()
    from user_system.cluster import up as cluster

    if (file is None) == (resume is None):
        raise ConfigError("name a manifest, or a run with --resume", allowed="one of them")
    chosen = list(settings or ())
    source = (
        cluster.resumed(resume, chosen)
        if resume is not None
        else cluster.Source(str(file), tuple(chosen))
    )
    prepared = cluster.prepare(source, resume=resume)
    cluster.quiet_logs(prepared.run)
    raise typer.Exit(cluster.execute(prepared, began))


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="The manifest.")], settings: Setting = None
) -> None:
    """Print what would run where, and start nothing."""
    from user_system.cluster import plan as planning
    from user_system.cluster import up as cluster

    processes = cluster.preview(cluster.Source(str(file), tuple(settings or ())))
    table(planning.COLUMNS, planning.rows(processes))


@app.command()
def status(run: Run = None, as_json: Json = False) -> None:
    """Print how a run does."""
    from user_system.cluster import progress, runs
    from user_system.cluster import status as looking
    from user_system.cluster.parse import dump

    found = runs.choose(run)
    with looking.Looker(found.root) as looker:
        view = looker.look()
    if as_json:
        _json({**dump(view), "page": found.record.page, "pids": found.record.processes})
        return
    table(progress.HEADINGS, [progress.cells(view)])
    table(
        ("robot", "mode", "holder", "version", "needs"),
        [
            (r.name, r.mode or "offline", r.holder, looking.version_of(r), r.help)
            for r in view.robots
        ],
    )
    links = [(r.name, looking.link_of(r.figures)) for r in view.robots if r.online]
    if any(link for _, link in links):
        table(("robot", "link of its host"), links)
    if view.hosts:
        table(progress.HOST_HEADINGS, [progress.host_cells(host) for host in view.hosts])
    print(f"page: {found.record.page}")
    print(f"audit log: {view.audit_records} records, head {view.audit_head}")


@app.command()
def down(run: Run = None) -> None:
    """End a run and everything it started."""
    from user_system.cluster import runs

    found = runs.choose(run)
    left = runs.down(found)
    print(f"{found.root} is down" + (f"; {left} processes had lost their launcher" if left else ""))


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory, e.g. runs/demo.")],
    version: Annotated[
        int, typer.Option(help="Weights; 0: the frozen ones, else the newest.", min=0)
    ] = 0,
    episodes: Annotated[int, typer.Option(help="Fresh starts.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Names the starts.", min=0)] = 1,
    settings: Setting = None,
) -> None:
    """Judge weights of a run on fresh starts, without learners or people."""
    began = time.monotonic()
    from user_system.cluster import evaluate as judging
    from user_system.cluster import up as cluster

    prepared = judging.prepare(
        run, version=version, episodes=episodes, seed=seed, settings=list(settings or ())
    )
    cluster.quiet_logs(prepared.run)
    raise typer.Exit(cluster.execute(prepared, began))


@plugins_app.command("list")
def plugins_list(as_json: Json = False) -> None:
    """List robots, tasks, learners and whatever else is installed."""
    from user_system.core.registry import GROUPS, Registry

    rows = [(group, *entry) for group in GROUPS for entry in Registry[object](group).describe()]
    columns = ("group", "name", "object", "package")
    if as_json:
        _json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table(columns, rows)


@robots_app.command("list")
def robots_list(run: Run = None, as_json: Json = False) -> None:
    """List the robots of a run."""
    from user_system.cluster import runs
    from user_system.cluster import status as looking
    from user_system.cluster.parse import dump

    with looking.Looker(runs.choose(run).root) as looker:
        robots = looker.look().robots
    if as_json:
        _json(dump(robots))
        return
    columns = ("robot", "online", "mode", "holder", "version", "rate", "needs")
    table(
        columns,
        [
            (
                r.name,
                "yes" if r.online else "no",
                r.mode,
                r.holder,
                str(r.version),
                f"{r.figures.get('rate', 1.0):g}",
                r.help,
            )
            for r in robots
        ],
    )


@app.command()
def doctor(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Of a robot host: also its way to the head."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find what this machine, or this robot host, lacks, and say what to do about it."""
    from user_system.cluster import doctor as examine

    if directory is None:
        findings = examine.examine()
    else:
        from user_system.cluster import edge_doctor

        findings = edge_doctor.examine(directory)
    if as_json:
        _json([vars(finding) for finding in findings])
    else:
        table(
            ("", "what", "found", "do"),
            [("ok" if f.ok else "NO", f.what, f.found, f.todo) for f in findings],
        )
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="Which benchmark: ingest, loop, net or replay.")],
    as_json: Json = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ID", help="Only these figures.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs whose figures are pooled.")] = 5,
    periods: Annotated[int, typer.Option(help="Control periods that are timed.")] = 5000,
    manifest: Annotated[Path, typer.Option(help="What is run.")] = Path("deploy/demo.yaml"),
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where it writes; its disk is measured.")
    ] = Path("runs/bench"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Next to nothing, to see that it works.")
    ] = False,
) -> None:
    """Measure the system on this machine; status 1 where a figure misses its goal."""
    from user_system.cluster import bench as benches

    options = benches.Options(tuple(only or ()), seeds, periods, manifest, directory, quick)
    result = benches.run(name, options)
    if as_json:
        _json(result.plain())
    else:
        from rich.console import Console

        Console().print(result.table())
    raise typer.Exit(0 if result.ok else 1)


def _json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def main() -> None:
    """Run the command line; errors of ours are one line each and an exit status."""
    try:
        app()
    except UserSystemError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        wrong = isinstance(error, ConfigError | MissingError | SecurityError)
        raise SystemExit(2 if wrong else 1) from None


if __name__ == "__main__":
    main()
