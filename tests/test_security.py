"""No format of ours carries code, and no text of ours becomes code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("user_system", "robots", "learners", "comms", "examples", "scripts")
SOURCES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if not {"pb", "build", ".venv"} & set(path.parts)
)

MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
MODULES |= {"jsonpickle", "pickle5", "telnetlib"}
CALLS = {"eval", "exec", "compile", "builtins.eval", "builtins.exec", "os.system", "os.popen"}
CALLS |= {"torch.load", "torch.save", "numpy.save", "np.save"}
CALLS |= {f"yaml.{kind}load{every}" for kind in ("", "unsafe_", "full_") for every in ("", "_all")}
CALLS |= {"ssl._create_unverified_context", "np.loads", "numpy.loads", "np.fromregex"}
CALLS |= {"torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "pandas.read_pickle"}
CALLS |= {"types.FunctionType", "types.CodeType", "ctypes.pythonapi", "runpy.run_path"}
CALLS |= {"tarfile.open", "shutil.unpack_archive", "zipfile.ZipFile", "xml.dom.minidom.parse"}
CHECKED = {"np.load": "allow_pickle", "numpy.load": "allow_pickle"}
"""Call -> argument that must say, in so many words, that no code is read."""


def violations(source: str) -> list[str]:
    """Return what in ``source`` could turn bytes or texts into running code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            found += [module] if module.partition(".")[0] in MODULES else sorted(names & CALLS)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] if name in CALLS else []
            if (word := CHECKED.get(name)) and word not in {k.arg for k in node.keywords}:
                found.append(f"{name}() without {word}=False")
            for word in node.keywords:
                on = not (isinstance(word.value, ast.Constant) and word.value.value is False)
                if word.arg in {"allow_pickle", "shell", "weights_only"} and on:
                    found.append(f"{name}({word.arg}=...)")
        elif isinstance(node, ast.Attribute) and node.attr in {"send_pyobj", "recv_pyobj"}:
            found.append(node.attr)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_unsafe_deserialiser(path):
    assert not violations(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy as np\nnp.load(f, allow_pickle=flag)",
        "torch.load(path)",
        "from torch import load",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.full_load_all(text)",
        "eval('1')",
        "subprocess.run('ls', shell=True)",
        "socket.recv_pyobj()",
        "import marshal as m",
        "np.load(path)",
        "torch.jit.load(path)",
        "pandas.read_pickle(path)",
        "from types import FunctionType, CodeType",
        "tarfile.open(path).extractall()",
    ],
)
def test_the_search_finds(source):
    assert violations(source)


@pytest.mark.parametrize(
    "source",
    [
        "yaml.safe_load(text)",
        "np.load(path, allow_pickle=False)",
        "re.compile('x')",
        "model.eval()",
        "subprocess.run(['ls'])",
    ],
)
def test_the_search_leaves_alone(source):
    assert not violations(source)
