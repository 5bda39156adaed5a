"""One run from manifest to report: check, start, watch, end.

::

    manifest -> checks (all problems at once) -> processes -> start -> watch until done -> end all

Everything that can be wrong is found before anything starts; whatever happens after that, every
process that was started is ended.
"""

import json
import logging
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comms.credentials import printed_fingerprint, read
from user_system.cluster import (
    auditing,
    enrol,
    layout,
    machine,
    plan,
    ports,
    report,
    resources,
    runs,
    setup,
    status,
    tunnels,
)
from user_system.cluster.compose import Composer
from user_system.cluster.interrupt import Interrupt
from user_system.cluster.launch import Supervisor
from user_system.cluster.layout import RunDir
from user_system.cluster.manifest import Manifest, load_manifest
from user_system.cluster.parse import dump, read_json
from user_system.cluster.process import write_private
from user_system.cluster.progress import Progress
from user_system.cluster.tree import Problems
from user_system.core.deeds import Deed
from user_system.core.errors import ConfigError, LinkError
from user_system.core.schedule import Phase
from user_system.hub.schedule import read_journal

SOURCE = "source.json"
"""In the run's ``config``: what it was started from, for ``--resume``."""
POLL_S = 0.2
LOOK_S = 0.5
DRAIN_S = 10.0
"""Time for the last experience to reach the replay buffer once a run is done."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What a run was started from."""

    file: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A checked run that has not started anything yet."""

    manifest: Manifest
    run: RunDir
    composer: Composer
    processes: list[plan.Process]


def check(manifest: Manifest, root: Path) -> tuple[ports.Ports, machine.Machine]:
    """Check the machine; return what the run may use.

    Raises:
        ConfigError: everything that is missing, one line each.
    """
    problems = Problems()
    here = machine.look(root)
    machine.check(manifest, here, problems)
    chosen = ports.choose(manifest, problems)
    problems.check()
    return chosen, here


def preview(source: Source) -> list[plan.Process]:
    """Return what ``up`` would start, and what remote hosts would; starts and writes nothing."""
    machine.check_packages()
    manifest = load_manifest(Path(source.file), source.settings)
    chosen, here = check(manifest, manifest.run)
    nowhere = RunDir(manifest.run.resolve(), Path("/tmp/us-preview"))
    composer = Composer(manifest, nowhere, chosen, here.cores, here.gpus)
    far = [process for host in manifest.remote_hosts for process in composer.remote(host)]
    return composer.processes() + far


def prepare(source: Source, *, resume: Path | None = None) -> Prepared:
    """Read, check and write down everything that a start needs.

    Raises:
        ConfigError: see ``check``; nothing was written. Or there is no interface to listen on.
    """
    machine.check_packages()
    manifest = load_manifest(Path(source.file), source.settings)
    root = resume or manifest.run
    runs.check_free(root)
    checked = check(manifest, root)
    if resume is None and (old := layout.set_aside(root)) is not None:
        log.warning("an earlier run was kept as %s", old)
    prepared = make(manifest, root, checked)
    if resume is None:
        folder = prepared.run.config
        shutil.copy(source.file, folder / "manifest.yaml")
        kept = Source(str(folder / "manifest.yaml"), source.settings)
        write_private(folder / SOURCE, json.dumps(dump(kept)))
    auditing.note(
        prepared.run.pki,
        Deed.SETTINGS,
        file=source.file,
        settings=" ".join(source.settings),
        how="resumed" if resume else "started",
    )
    open_tunnel(prepared)
    return prepared


def open_tunnel(prepared: Prepared) -> None:
    """Bring up what robot hosts come through, or say what a person is to do.

    Raises:
        ConfigError: there is no interface to listen on.
    """
    way, pki = prepared.manifest.tunnel, prepared.run.pki
    if prepared.manifest.remote_hosts and (todo := tunnels.bring_up(pki, way)):
        log.warning("the tunnel: %s", todo)


def make(
    manifest: Manifest,
    root: Path,
    checked: tuple[ports.Ports, machine.Machine],
    learning: bool = True,
) -> Prepared:
    """Write down everything that a start in ``root`` needs, beside what is there."""
    chosen, here = checked
    run = layout.open_run(root)
    run.make()
    enrol.make_pki(run.pki, manifest)
    composer = Composer(
        manifest,
        run,
        chosen,
        here.cores,
        here.gpus,
        ray_env=resources.environment(resources.make_token(run.pki)),
        secrets=enrol.make_people(run.accounts, manifest),
        learning=learning,
    )
    tunnels.publish(run.pki, manifest.tunnel, composer.near)
    processes = composer.processes()
    plan.write_configs(processes)
    write_setups(composer)
    write_private(run.config / status.FILE, json.dumps(dump(composer.link(enrol.CLIENT))))
    return Prepared(manifest, run, composer, processes)


def write_setups(composer: Composer) -> None:
    """Write down what each remote host is to run, for the hub to serve; nothing of earlier ones."""
    shutil.rmtree(composer.run.setups, ignore_errors=True)
    composer.run.setups.mkdir(mode=0o700)
    for host in composer.manifest.remote_hosts:
        made = setup.make(composer.manifest.name, host, composer.remote(host))
        write_private(composer.run.setups / f"{host}.json", setup.encode(made).decode())


def resumed(root: Path, settings: Sequence[str] = ()) -> Source:
    """Return what a run was started from, with further settings.

    Raises:
        ConfigError: there is no such run.
    """
    path = root / "config" / SOURCE
    if not path.exists():
        raise ConfigError(f"{root} is not a run", todo="Name a directory such as runs/demo.")
    kept = read_json(path, Source)
    return Source(str(root / "config" / "manifest.yaml"), (*kept.settings, *settings))


def execute(prepared: Prepared, began: float) -> int:
    """Start a prepared run, watch it, end it; return the exit status.

    Raises:
        ConfigError: a process refused its configuration; everything was ended.
    """
    run, composer = prepared.run, prepared.composer
    supervisor = Supervisor(
        run.root,
        mark=f"{run.root}:{uuid.uuid4().hex}",
        page=composer.page,
        temporary=str(run.short),
    )
    interrupt = Interrupt()
    with interrupt.watching(), Progress(composer.page) as progress:
        try:
            return _live(prepared, supervisor, interrupt, progress, began)
        finally:
            progress.say("ending every process; Ctrl-C again to hurry")
            supervisor.stop(interrupt.hurry)
            shutil.rmtree(run.short, ignore_errors=True)


def _live(
    prepared: Prepared,
    supervisor: Supervisor,
    interrupt: Interrupt,
    progress: Progress,
    began: float,
) -> int:
    run, manifest = prepared.run, prepared.manifest
    progress.say(f"starting {len(plan.everything(prepared.processes))} processes in {run.root}")

    def served(name: str) -> None:
        if name == "teleop":
            progress.say(f"page: {login(prepared)}")
            if manifest.page_secure:
                own = printed_fingerprint(read(run.pki / "ca.crt"))
                progress.say(f"bring a browser to trust it: {prepared.composer.page}/trust")
                progress.say(f"fingerprint to compare there: {own}")

    supervisor.start([p.spec for p in prepared.processes], interrupt.asked, served)
    if interrupt.asked():
        return 128 + interrupt.number
    progress.say("all processes serve")
    for host in manifest.remote_hosts:
        progress.say(f"robot host {host} runs by itself; to have it join: {status.invite(host)}")
    with status.Looker(run.root) as looker:
        view = _watch(manifest, supervisor, looker, interrupt, progress)
        if view is not None:
            summary(prepared, view, progress, time.monotonic() - began)
    return 128 + interrupt.number if interrupt.asked() else 0


def login(prepared: Prepared) -> str:
    """Return the address of the page that logs its reader in."""
    name = enrol.PERSON
    return f"{prepared.composer.page}/#{name}:{prepared.composer.secrets[name]}"


def _watch(
    manifest: Manifest,
    supervisor: Supervisor,
    looker: status.Looker,
    interrupt: Interrupt,
    progress: Progress,
) -> status.View | None:
    """Keep the run alive and show it, until it is done or somebody ends it."""
    view, due, drain_until = None, 0.0, float("inf")
    while not interrupt.asked():
        supervisor.poll()
        if time.monotonic() >= due:
            due = time.monotonic() + LOOK_S
            try:
                view = looker.look()
            except LinkError as error:  # the hub is being restarted
                log.info("no status: %s", error)
                continue
            progress.show(view)
            supervisor.lend(view.phase != Phase.TRAIN)
            if manifest.schedule.stop_when_done and view.phase == "done":
                drain_until = min(drain_until, time.monotonic() + DRAIN_S)
                if view.spooled == 0 or time.monotonic() > drain_until:
                    return view
        time.sleep(POLL_S)
    return view


def summary(prepared: Prepared, view: status.View, progress: Progress, wall_s: float) -> None:
    """Write the report and the learning curve, and say what they say."""
    run = prepared.run
    journal = read_journal(run.hub / "episodes.jsonl")
    made = report.make(view, journal, seed=prepared.manifest.schedule.seed, wall_s=wall_s)
    path = report.write(run.root, made)
    curve = report.draw(run.root, journal, view.evaluations)
    progress.say(
        f"{view.phase}: success {made['success_rate']:.0%} after {made['env_steps']} env steps in "
        f"{made['episodes']} episodes, people drove {made['intervention_rate']:.0%} of training, "
        f"{wall_s:.0f} s"
    )
    progress.say(f"report: {path}  learning curve: {curve}")


def quiet_logs(run: RunDir) -> None:
    """Send the launcher's own log beside the others', so that the terminal stays readable."""
    (run.root / "logs").mkdir(exist_ok=True)
    handler = logging.FileHandler(run.root / "logs" / "launcher.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
