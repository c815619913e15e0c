"""The kernels on a bare machine: with torch and triton they import, with pytest their tests run, and nothing else is
needed. Each in a process where every other package is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
# Beside the standard library. What torch and pytest themselves depend on they bring along wherever they are.
TORCH = ("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy", "typing_extensions")
PYTEST = ("_pytest", "iniconfig", "packaging", "pluggy", "py", "pygments", "pytest")

REFUSE = """
import importlib.machinery, sys

allowed = {"torch", "torchgen", "functorch", "triton", *sys.argv.pop(1).split(",")}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        spec = None if top in allowed else importlib.machinery.PathFinder.find_spec(top)
        if spec is not None and any("-packages" in place for place in spec.submodule_search_locations or [spec.origin]):
            raise ModuleNotFoundError(f"{name} is not on a bare machine", name=name)

sys.meta_path.insert(0, Refuse())
"""

IMPORT_ALL = """
import importlib, pkgutil, sys, types

package = types.ModuleType("callboard")
package.__path__ = [sys.argv[1]]
sys.modules["callboard"] = package
kernels = importlib.import_module("callboard.kernels")
names = [module.name for module in pkgutil.walk_packages(kernels.__path__, "callboard.kernels.")]
for name in names:
    importlib.import_module(name)
assert "callboard.kernels.gpu.tuning" in names
foreign = {"numpy", "platformdirs", "msgspec"} & set(sys.modules)
assert not foreign, foreign
print("imported", len(names))
"""

RUN_TESTS = """
import pytest

sys.exit(pytest.main(sys.argv[1:]))
"""


def bare(program: str, packages: tuple[str, ...], *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", REFUSE + program, ",".join(packages), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_every_module_of_the_kernels_imports_with_torch_and_triton_alone() -> None:
    assert "imported" in bare(IMPORT_ALL, TORCH, str(ROOT), TRITON_INTERPRET="0")


def test_other_packages_are_refused_indeed() -> None:
    with pytest.raises(AssertionError, match="msgspec is not on a bare machine"):
        bare("import msgspec", TORCH)


def test_the_tests_of_the_triton_path_need_pytest_beside_and_nothing_else() -> None:
    """All of them are collected; those that take a moment run. (The interpreter needs numpy, a card does not.)"""
    gpu = "tests/gpu"
    options = ("-c", f"{gpu}/pytest.ini", "--rootdir", gpu, "--confcutdir", gpu, "-q")
    packages = (*TORCH, *PYTEST, "numpy")
    num_files = len(list((ROOT / gpu).glob("test_*.py")))
    collected = bare(RUN_TESTS, packages, *options, "--collect-only", gpu, TRITON_INTERPRET="1")
    assert len({line.partition("::")[0] for line in collected.splitlines() if "::" in line}) == num_files
    bare(RUN_TESTS, packages, *options, f"{gpu}/test_launch.py", f"{gpu}/test_graphs.py", TRITON_INTERPRET="1")
