"""The example in ``examples/tiny_learner``, installed as its own package, keeps the contract."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny_learner"
CONTRACT = """
import numpy as np
from learners.testing import SPEC, LearnerContract, synthetic_data
from user_system.core.registry import Registry
from user_system.core.specs import ActionSpec
from user_system.core.types import Weights

tiny = Registry("learners").get("tiny")


class TestTiny(LearnerContract):
    plugin = tiny
    config = tiny.config_type()


def test_it_clones_what_people_did():
    data = synthetic_data(SPEC)
    learner = tiny.make_learner(SPEC, tiny.config_type(rate=0.3), data=data, seed=0)
    policy = tiny.make_policy(SPEC, tiny.config_type())
    for _ in range(300):
        learner.update()
    policy.load(Weights("tiny", 1, "", *learner.weights()))
    # Demonstrated actions are uniform: the best answer is the middle of their bounds.
    centre, half = SPEC.action.scale
    seen = {name: np.full(f.shape, 0.04, np.float32) for name, f in SPEC.observation.items()}
    assert np.all(np.abs(policy.act(seen, mode="eval").actions[0] - centre) < half / 2)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example with pip, without network, into a directory of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)),
        str(EXAMPLE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the package is installed, and the repository is not the current folder."""
    env = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=100, env=env, cwd=installed,
    )  # fmt: skip


def test_its_entry_point_is_found_by_name(installed: Path) -> None:
    code = "from user_system.core.registry import Registry; print(Registry('learners').describe())"
    done = run(installed, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "('tiny', 'tiny_learner:plugin', 'tiny-learner')" in done.stdout


def test_it_keeps_the_contract(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "test_contract.py"
    file.write_text(CONTRACT)
    done = run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 passed" in done.stdout


def test_it_fits_into_the_readme() -> None:
    assert len((EXAMPLE / "tiny_learner.py").read_text().splitlines()) <= 25
