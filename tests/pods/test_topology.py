"""Names of topologies; and, with libtpu, a step compiled for a slice that is not there, read."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.pods import topology
from tests.run_small import ROOT, config_of, environment, write_config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: the extra `pod` brings it"
)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e", r"must be v5e:RxC, v6e:RxC or v5p:XxYxZ"),
        ("v9:4x4", r"must be v5e:RxC"),
        ("v5e:4 x 4", r"must be v5e:RxC"),
        ("v5e:3x5", r"v5e comes as 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5e:16x32", r"v5e comes as"),
        ("v5e:4x4x4", r"v5e comes as"),
        ("v6e:5x5", r"v6e comes as"),
        ("v5p:4x4", r"v5p comes as 2x2x1, .* from 4x4x4 to 16x16x24"),
        ("v5p:8x4x4", r"ascending"),
        ("v5p:16x24x24", r"v5p comes as"),
        ("v5p:0x4x4", r"v5p comes as"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        topology.topology_devices(name)


def test_without_libtpu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'mlm-jax\[pod\]'"):
        topology.topology_devices("v5e:4x4")


def test_of_slices_there_is_one_at_least() -> None:
    with pytest.raises(InputError, match="num_slices = 0"):
        topology.topology_devices("v5e:4x4", 0)


def check(config: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/compile_check.py", str(config), *map(str, flags)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )


@pytest.mark.release
@needs_libtpu
def test_a_step_compiles_for_two_slices_by_two_processes_at_once(tmp_path: Path) -> None:
    """libtpu's lock would let one in; sums leave a slice, gathers do not."""
    config = write_config(config_of(tmp_path / "run", batch_size=32))
    flags = (
        "--topology",
        "v5e:2x2",
        "--mesh.dcn-data",
        "2",
        "--mesh.data",
        "2",
        "--mesh.fsdp",
        "2",
        "--json",
    )
    command = [sys.executable, "scripts/compile_check.py", str(config), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        report = json.loads(out)
        assert (report["num_devices"], report["slices"], report["device_kind"]) == (8, 2, "TPU v5 lite")
        between = {(c["kind"], c["axes"]) for c in report["collectives"] if "between slices" in c["axes"]}
        assert between == {("all-reduce", "data (between slices)")}
        assert any(c["kind"] == "all-gather" and c["axes"] == "fsdp" for c in report["collectives"])
        assert report["seconds"]["network"] > 0


@pytest.mark.release
@needs_libtpu
def test_what_does_not_fit_exits_with_what_would(tmp_path: Path) -> None:
    config = ROOT / "configs" / "bert_large_512.py"
    small = ("--topology", "v5e:1x1", "--batch-size", 256, "--compute.remat", "none", "--model.num-layers", 2)
    ended = check(config, *small)
    assert ended.returncode == 1
    assert ended.stderr.startswith("does not fit: ")
    assert "smallest change found that fits: --" in ended.stderr


COMPILED_ON_A_TPU = """
from dataclasses import replace
import jax
from mlm_jax.configs import modernbert_base
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.pods.compile_check import stand_in_masking
from mlm_jax.pods.topology import topology_devices
from mlm_jax.step.program import build_program

base = modernbert_base.config()
config = replace(
    base,
    model=replace(base.model, num_layers=4, max_sequence_length=8192),
    data=replace(base.data, sequence_length=8192, attend_within_documents=True),
    mesh=replace(base.mesh, data=4),
    batch_size=4,
    accumulation_steps=1,
)
mesh = make_mesh(config.mesh, topology_devices("v5e:2x2"))
print(build_program(config, stand_in_masking(config), mesh, 102).compiled_train.as_text())
"""


@pytest.mark.release
@needs_libtpu
def test_no_array_of_a_step_on_long_rows_has_two_dimensions_of_their_length() -> None:
    """ModernBERT-base's global and local layers, with documents, forward and backward."""
    ended = subprocess.run(
        [sys.executable, "-c", COMPILED_ON_A_TPU],
        cwd=ROOT,
        env=environment(optimised=True),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert ended.returncode == 0, ended.stderr
    shapes = [shape.split(",") for shape in re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", ended.stdout)]
    assert any("8192" in shape for shape in shapes)
    assert not [shape for shape in shapes if shape.count("8192") > 1]


LOWERED_FOR_A_TPU = """
import jax
from dataclasses import replace
from mlm_jax.config import BertConfig, DataConfig, TrainConfig
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.pods.compile_check import stand_in_masking
from mlm_jax.pods.topology import topology_devices
from mlm_jax.step.program import build_program

model = BertConfig(num_layers=2, attention_dropout_rate=0.0, pooler=False)
config = TrainConfig(model=model, data=DataConfig(sequence_length=512), batch_size=8)
program = build_program(config, stand_in_masking(config), make_mesh(config.mesh, topology_devices("v5e:1x1")))
print(program.compute)
print("dot_general" in program.lowered_train.as_text(), "xbf16>" in program.lowered_train.as_text())
print({leaf.dtype.name for leaf in jax.tree.leaves(program.abstract_state.params)})
"""


@pytest.mark.release
@needs_libtpu
def test_the_default_on_a_tpu_is_bfloat16_with_float32_parameters() -> None:
    told = subprocess.check_output(
        [sys.executable, "-c", LOWERED_FOR_A_TPU], cwd=ROOT, env=environment(), text=True
    )
    assert told.splitlines() == [
        "bfloat16 (the default on TPU v5 lite), layers in a loop (the default on TPU v5 lite), attention splash, "
        "remat none",
        "True True",
        "{'float32'}",
    ]
