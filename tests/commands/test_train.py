"""`mlm-jax train` with configs that use JAX themselves."""

from pathlib import Path

import jax
import pytest

from mlm_jax.commands import train
from mlm_jax.config import DistributedConfig
from mlm_jax.errors import InputError
from mlm_jax.parallel.distributed import join
from tests.jobs import Job, free_port
from tests.run_small import config_of, write_config

ASKS_JAX = """
from dataclasses import replace
import jax
from mlm_jax.config import MeshConfig
from mlm_jax.config.files import load_config

def config():
    parent = load_config({parent!r})
    return replace(parent, batch_size=8 * jax.device_count(), mesh=MeshConfig(data=jax.device_count()))
"""


def config_that_asks_jax(tmp_path: Path) -> Path:
    parent = write_config(config_of(tmp_path / "run", num_steps=4, batch_size=1))
    path = tmp_path / "c.py"
    path.write_text(ASKS_JAX.format(parent=str(parent)))
    return path


@pytest.mark.slow
def test_a_config_may_ask_jax_for_the_number_of_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(config_that_asks_jax(tmp_path))], "PROG") == 0
    assert f"mesh: data {jax.device_count()}," in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_named_by_flags_is_joined_before_the_config_asks_jax(tmp_path: Path) -> None:
    config = config_that_asks_jax(tmp_path)
    ended = Job(tmp_path, 2, 2, ["scripts/train.py", str(config)], timeout_seconds=60).ended()
    assert [end.code for end in ended] == [0, 0], ended
    assert "mesh: data 4," in ended[0].stderr


def test_a_process_that_used_jax_cannot_join_a_job_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jax.devices()
    said = r"the config used JAX before .*: pass --distributed\.coordinator, .* on the command line"
    job = DistributedConfig(coordinator=f"127.0.0.1:{free_port()}", num_processes=2, process_id=0)
    with pytest.raises(InputError, match=said):
        join(job)
    for name, value in {"JOB_ID": "1", "STEP_NODELIST": "127.0.0.1", "NTASKS": "2", "PROCID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    with pytest.raises(InputError, match=said):
        join(DistributedConfig())
    monkeypatch.setenv("SLURM_NTASKS", "1")
    join(DistributedConfig())
