"""The wheel, installed into a new environment and used in another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MINE = """
from dataclasses import replace
from mlm_jax.configs.demo import config as parent
def config(): return replace(parent(), seed=1)
"""


@pytest.fixture(scope="module")
def mlm_jax_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mlm-jax` of an environment whose dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because building leaves files behind.
    source = folder / "source"
    for name in ("mlm_jax", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    # With PYTHONPATH, pip would find the package installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *options, "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True, env=environment)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", *options, wheel], check=True, env=environment)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python.with_name("mlm-jax")


def run(command: Path, folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # One device, and quick compilation.
    environment |= {"HOME": str(folder), "COLUMNS": "80", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    ended = subprocess.run(
        [command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_the_wheel_trains_in_another_folder(mlm_jax_command: Path, tmp_path: Path) -> None:
    assert run(mlm_jax_command, tmp_path, "--version").startswith("mlm-jax ")
    assert "--num-steps 4000 " in run(mlm_jax_command, tmp_path, "train", "demo", "--help")
    shown = run(mlm_jax_command, tmp_path, "demo", "--num-steps", "200")
    assert shown.count("The Statue of ") == 6
    (tmp_path / "mine.py").write_text(MINE)
    assert "--seed 1 " in run(mlm_jax_command, tmp_path, "train", "mine.py", "--help")
    assert (tmp_path / "runs" / "demo" / "loss.png").is_file()
