"""What the layout promises: four real packages, light imports, one door per vendor."""

import ast
import json
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import user_system

ROOT = Path(__file__).parents[1]
PACKAGES = ("user_system", "robots", "learners", "comms")
SOURCES = sorted(
    path for name in PACKAGES for path in (ROOT / name).rglob("*.py") if "pb" not in path.parts
)
INITS = [path for path in SOURCES if path.name == "__init__.py"]

DOORS = {
    "lmdb": ("user_system/replay/",),
    # Without TLS only to say what TLS costs: in the benchmark, on the loopback.
    "grpc": (
        "comms/",
        "user_system/cluster/bench/net_plain",
        "user_system/cluster/bench/net_weights_plain",
    ),
    "zmq": ("comms/",),
    "google": ("comms/",),
    "ray": ("user_system/cluster/",),
    "fastapi": ("user_system/teleop/",),
    "starlette": ("user_system/teleop/",),
    "uvicorn": ("user_system/teleop/",),
    "mujoco": ("robots/sim/",),
    "gymnasium": ("robots/gymnasium",),
    "torch": ("learners/",),
    "ruckig": ("robots/",),
    "pylibfranka": ("robots/franka/",),
    "rtde_control": ("robots/ur/",),
    "rtde_receive": ("robots/ur/",),
    "pyrealsense2": ("robots/cameras/",),
    "rclpy": ("robots/",),
    "zstandard": ("user_system/codec/",),
    "simplejpeg": ("user_system/codec/",),
    "safetensors": ("user_system/codec/",),
    "cryptography": ("comms/",),
    "pyarrow": ("user_system/replay/exchange/parquet",),
    "av": ("user_system/replay/exchange/video",),
    "PIL": ("user_system/replay/exchange/picture",),
    "mcap": ("user_system/replay/exchange/mcap_file",),
}
"""Vendor library -> the only places that may import it."""

HEAVY = {"torch", "ray", "grpc", "zmq", "fastapi", "mujoco", "lmdb", "google.protobuf", "ruckig"}


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    """Return (top-level package, line) of everything a file imports, wherever in the file."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.module.partition(".")[0], node.lineno))
    return found


@pytest.mark.parametrize("vendor", DOORS)
def test_each_vendor_has_one_door(vendor):
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        for name, line in imports(path)
        if name == vendor and not str(path.relative_to(ROOT)).startswith(DOORS[vendor])
    ]
    assert not found, f"{vendor} belongs in {DOORS[vendor]}"


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after ``statement``."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("package", ["user_system", "robots", "learners", "comms"])
def test_front_doors_are_light(package):
    assert not loaded_by(f"import {package}") & HEAVY


def test_plugin_listing_is_light():
    listing = "from user_system.core.registry import GROUPS, Registry\n"
    listing += "[Registry(group).describe() for group in GROUPS]"
    assert not loaded_by(listing) & HEAVY


def test_all_is_what_the_front_door_exports():
    public = {
        name
        for name, value in vars(user_system).items()
        if not name.startswith("_") and not hasattr(value, "__spec__")
    }
    assert public == set(user_system.__all__)
    assert sorted(user_system.__all__) == user_system.__all__


@pytest.mark.parametrize("path", INITS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_what_a_package_takes_in_it_uses_or_exports(path):
    """Names that a package imports from ours without using them are its exports."""
    tree = ast.parse(path.read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    taken, declared = set(), set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            taken |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            declared = set(ast.literal_eval(node.value))
    assert taken - used <= declared


def names_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def needs(path: Path, modules: set[str]) -> set[str]:
    """Return the modules of ours that one needs when it runs, wherever in it they are imported."""
    tree = ast.parse(path.read_text())
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & modules or {node.module}
    return found & modules - {names_of(path)}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules of which each needs the next, and the last the first; none: []."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_no_module_needs_itself_through_others():
    modules = {names_of(path) for path in SOURCES}
    graph = {names_of(path): needs(path, modules) for path in SOURCES}
    assert len(graph["user_system.cli"]) > 0, "the walk sees imports"
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle(graph) == []


def test_the_four_packages_are_of_one_parent():
    origins = {name: Path(find_spec(name).origin).parents[1] for name in PACKAGES}
    assert set(origins.values()) == {ROOT}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package):
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.parametrize("folder", ["tests", "proto", "deploy", "docker"])
def test_folders_that_are_no_packages_stay_so(folder):
    """An ``__init__.py`` there would shadow an installed package of that name."""
    assert not list((ROOT / folder).rglob("__init__.py"))


def test_proto_holds_only_protos():
    assert {path.suffix for path in (ROOT / "proto").iterdir()} == {".proto"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path):
    """Growth is noticed here, before a file becomes two nouns."""
    assert len(path.read_text().splitlines()) <= 600


def test_most_files_and_functions_are_short():
    files = sorted(len(path.read_text().splitlines()) for path in SOURCES)
    assert files[int(0.9 * (len(files) - 1))] <= 400
    functions = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    assert functions[int(0.9 * (len(functions) - 1))] <= 30
    assert functions[-1] <= 80
