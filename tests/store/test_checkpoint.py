import dataclasses
import errno
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mlm_jax.errors import InputError
from mlm_jax.store import checkpoint, orbax_errors
from mlm_jax.store.checkpoint import Checkpointer, CheckpointError

DESCRIPTION = {"data": {"fingerprint": "ab" * 32}, "model": {"num_layers": 2, "shape": (1, 2)}, "seed": 0}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: Any
    opt_state: Any


def make_state(step: int) -> State:
    """An nnx.State, an optax chain and every dtype that a state may hold, all different for each step."""
    key = jax.random.fold_in(jax.random.key(0), step)
    _, linear = nnx.split(nnx.Linear(24, 16, rngs=nnx.Rngs(key)))
    params = {
        "linear": linear,
        "half": jax.random.normal(key, (8, 16), jnp.bfloat16),
        "odd": jnp.array([3.4e38, -0.0, -3.4e38, 1e-45, step], jnp.float32),
        "bytes": jax.random.bits(key, (5, 3), jnp.uint8),
        "flags": jnp.array([True, False, True]),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(step=jnp.int32(step), params=params, opt_state=optimizer.init(linear))


def abstract(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_bitwise_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_steps(folder: Path, steps: range, **options: Any) -> None:
    with Checkpointer(folder, **options) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step), DESCRIPTION)


def restore(folder: Path) -> tuple[int, State] | None:
    with Checkpointer(folder) as checkpointer:
        return checkpointer.restore(abstract(make_state(0)), DESCRIPTION)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_restores_every_leaf_bitwise(tmp_path: Path) -> None:
    save_steps(tmp_path, range(1, 3))
    step, state = restore(tmp_path)
    assert step == 2
    assert_bitwise_equal(state, make_state(2))


def with_a_nan(step: int) -> State:
    state = make_state(step)
    return dataclasses.replace(
        state, params=state.params | {"odd": jnp.array([1.0, jnp.nan])}, step=jnp.int32(step)
    )


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1), DESCRIPTION)
        with pytest.raises(
            CheckpointError, match=r"step 2 .*: NaN or infinite values in params\.odd; .*: 1$"
        ):
            checkpointer.save(2, with_a_nan(2), DESCRIPTION)
        assert checkpointer.steps() == [1]
        checkpointer.save(3, make_state(3), DESCRIPTION)
    assert restore(tmp_path)[0] == 3


def test_a_checkpoint_that_is_not_finite_is_named_and_the_one_before_it_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions wrote such checkpoints."""
    state = make_state(2)
    moments = jax.tree.map(
        lambda x: x if x.dtype == jnp.int32 else jnp.full_like(x, jnp.inf), state.opt_state
    )
    bad = dataclasses.replace(state, opt_state=moments)
    with monkeypatch.context() as patch, Checkpointer(tmp_path) as checkpointer:
        patch.setattr(checkpoint, "nonfinite", lambda digests: [])
        checkpointer.save(1, make_state(1), DESCRIPTION)
        checkpointer.save(2, bad, DESCRIPTION)
    assert restore(tmp_path)[0] == 1
    warning = f"warning: checkpoint {tmp_path / '2'} is damaged: NaN or infinite values in opt_state."
    assert capsys.readouterr().err.startswith(warning)
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(InputError, match=r"every checkpoint is damaged \(2\)"):
        restore(tmp_path)
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(InputError, match="2: damaged: NaN or infinite"),
    ):
        checkpointer.verify(2, {})


def test_gives_back_the_sums_that_were_not_yet_logged(tmp_path: Path) -> None:
    sums = {"steps": 3, "loss": 0.1 + 0.2}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1), DESCRIPTION)
        checkpointer.save(2, make_state(2), DESCRIPTION, log_sums=sums)
        checkpointer.wait()
        assert (checkpointer.log_sums(1), checkpointer.log_sums(2)) == ({}, sums)


def test_restores_the_parameters_alone(tmp_path: Path) -> None:
    save_steps(tmp_path, range(1, 3))
    target = abstract(make_state(0).params)
    with Checkpointer(tmp_path) as checkpointer:
        step, params = checkpointer.restore_part("params", target, {"model": DESCRIPTION["model"]})
        assert step == 2
        assert_bitwise_equal(params, make_state(2).params)
        assert_bitwise_equal(checkpointer.restore(abstract(make_state(0)), DESCRIPTION)[1], make_state(2))
        with pytest.raises(InputError, match=r"model\.num_layers: 2 in the checkpoint, 3 now"):
            checkpointer.restore_part("params", target, {"model": DESCRIPTION["model"] | {"num_layers": 3}})
        with pytest.raises(InputError, match=r"params\.half: .* in the checkpoint, absent now"):
            checkpointer.restore_part("params", {k: v for k, v in target.items() if k != "half"}, {})
        assert checkpointer.restore_part("params", target, {})[0] == 2
    with Checkpointer(tmp_path / "none") as checkpointer:
        assert checkpointer.restore_part("params", target, {}) is None


def test_the_hooks_of_the_process_are_put_back_when_the_last_one_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless Orbax has failed, as in other tests of this process."""
    monkeypatch.setattr(orbax_errors, "_has_failed", False)
    with Checkpointer(tmp_path / "a"):
        pass
    before = sys.unraisablehook
    first, second = Checkpointer(tmp_path / "a"), Checkpointer(tmp_path / "b")
    assert sys.unraisablehook is not before
    first.close()
    assert sys.unraisablehook is not before
    second.close()
    assert sys.unraisablehook is before
    assert not [f for f in logging.getLogger("absl").filters if "orbax" in getattr(f, "__module__", "")]


def test_no_checkpoint_is_none_and_makes_no_folder(tmp_path: Path) -> None:
    assert restore(tmp_path / "checkpoints") is None
    assert not (tmp_path / "checkpoints").exists()


def test_keeps_the_newest_and_the_best_across_runs(tmp_path: Path) -> None:
    losses = {1: float("nan"), 2: 1.0, 3: 2.0, 4: 3.0, 5: None, 6: 1.5}
    for run in ((1, 2, 3), (4, 5, 6)):
        with Checkpointer(tmp_path, keep_newest=2) as checkpointer:
            for step in run:
                checkpointer.save(step, make_state(step), DESCRIPTION, eval_loss=losses[step])
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps() == [2, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "6"]


@pytest.mark.slow
def test_what_is_no_longer_kept_leaves_at_once_and_whole(tmp_path: Path) -> None:
    """A process killed while it deletes a checkpoint must not leave half of it among the others."""
    with Checkpointer(tmp_path / "run", keep_newest=1) as checkpointer:
        checkpointer.save(1, make_state(1), DESCRIPTION)
        checkpointer.save(2, make_state(2), DESCRIPTION)
        deadline = time.monotonic() + 30
        while checkpointer.steps() != [2] and time.monotonic() < deadline:
            time.sleep(0.01)
        (tmp_path / "run" / "deleted").rename(tmp_path / "kept")
    assert_bitwise_equal(restore(tmp_path / "kept")[1], make_state(1))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["2"]


@pytest.mark.slow
def test_a_step_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    save_steps(tmp_path, range(1, 2))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(7), DESCRIPTION)
    assert_bitwise_equal(restore(tmp_path)[1], make_state(1))


def test_refuses_another_description_naming_every_difference(tmp_path: Path) -> None:
    save_steps(tmp_path, range(1, 3))
    other = {"data": {"fingerprint": "cd" * 32}, "model": {"num_layers": 4, "shape": [1, 2]}, "extra": None}
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(InputError) as error:
        checkpointer.restore(abstract(make_state(0)), other)
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path / "2") in message
    assert 'data.fingerprint: "abab' in message
    assert 'in the checkpoint, "cdcd' in message
    assert "model.num_layers: 2 in the checkpoint, 4 now" in message
    assert "seed: 0 in the checkpoint, absent now" in message
    assert "extra: absent in the checkpoint, null now" in message
    assert "shape" not in message


def test_a_setting_that_an_older_checkpoint_lacks_had_its_default(tmp_path: Path) -> None:
    save_steps(tmp_path, range(1, 2))
    old = {"position_offset": 0, "mask_dropout_id": None}
    target = abstract(make_state(0))
    with Checkpointer(tmp_path) as checkpointer:
        for added, message in (
            (old, None),
            (old | {"position_offset": 1}, r"model\.position_offset: 0 in the checkpoint, 1 now"),
            (old | {"mask_dropout_id": 4}, r"model\.mask_dropout_id: null in the checkpoint, 4 now"),
        ):
            description = DESCRIPTION | {"model": DESCRIPTION["model"] | added}
            for read in (
                lambda: checkpointer.restore(target, description),  # noqa: B023
                lambda: checkpointer.restore_part("params", target.params, description),  # noqa: B023
                lambda: checkpointer.verify(1, {"model": description["model"]}),  # noqa: B023
            ):
                with nullcontext() if message is None else pytest.raises(InputError, match=message):
                    read()


def test_refuses_another_shape_and_another_tree(tmp_path: Path) -> None:
    save_steps(tmp_path, range(1, 2))
    state = abstract(make_state(0))
    state.params["half"] = jax.ShapeDtypeStruct((8, 8), jnp.bfloat16, sharding=state.step.sharding)
    state.params["more"] = state.step
    del state.params["flags"]
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(InputError) as error:
        checkpointer.restore(state, DESCRIPTION)
    message = str(error.value)
    assert 'params.half: "bfloat16[8,16]" in the checkpoint, "bfloat16[8,8]" now' in message
    assert "params.more: absent in the checkpoint" in message
    assert 'params.flags: "bool[3]" in the checkpoint, absent now' in message


def truncate(folder: Path) -> None:
    # Every data file: which of them hold what was superseded while it was written depends on the clock.
    for path in (folder / "state").rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)


def delete_arrays(folder: Path) -> None:
    for path in (folder / "state").rglob("d/*"):
        path.unlink()


def flip_bytes(folder: Path) -> None:
    for path in (folder / "state").rglob("d/*"):
        data = bytearray(path.read_bytes())
        for at in range(len(data) // 4, len(data), 97):
            data[at] ^= 0x10
        path.write_bytes(data)


def delete_everything(folder: Path) -> None:
    for path in files_of(folder):
        path.unlink()


def alter_manifest(folder: Path) -> None:
    path = folder / "manifest" / "metadata"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


def cut_manifest(folder: Path) -> None:
    path = folder / "manifest" / "metadata"
    os.truncate(path, path.stat().st_size // 2)


def swap_arrays(folder: Path) -> None:
    """Whole files, other values: nothing but the digest can tell."""
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.parent / "3" / "state", folder / "state")


DAMAGES = [swap_arrays, truncate, delete_arrays, flip_bytes, delete_everything, alter_manifest, cut_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_reported_and_the_one_before_used(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: Any
) -> None:
    save_steps(tmp_path, range(1, 4), keep_newest=1)
    save_steps(tmp_path, range(4, 5), keep_newest=2)
    damage(tmp_path / "4")
    capfd.readouterr()
    with Checkpointer(tmp_path, keep_newest=1) as checkpointer:
        step, state = checkpointer.restore(abstract(make_state(0)), DESCRIPTION)
        assert step == 3
        assert_bitwise_equal(state, make_state(3))
        warning = capfd.readouterr().err
        assert warning.startswith(f"warning: checkpoint {tmp_path / '4'} is damaged: ")
        assert warning.count("\n") == 1
        # The damaged one does not count as the newest: it must not push the good ones out.
        checkpointer.save(4, make_state(4), DESCRIPTION)
        checkpointer.wait()
        assert checkpointer.steps() == [4]
        assert (tmp_path / "4.damaged").is_dir()
    assert_bitwise_equal(restore(tmp_path)[1], make_state(4))


def test_a_renamed_checkpoint_is_not_that_of_another_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_steps(tmp_path, range(1, 3))
    (tmp_path / "2").rename(tmp_path / "9")
    assert restore(tmp_path)[0] == 1
    assert f"checkpoint {tmp_path / '9'} is damaged: is the checkpoint of step 2" in capfd.readouterr().err


def test_an_array_that_the_metadata_do_not_list_is_damage(tmp_path: Path) -> None:
    save_steps(tmp_path, range(1, 3), keep_newest=2)
    metadata = tmp_path / "2" / "state" / "_METADATA"
    metadata.write_text(metadata.read_text().replace("params.half", "params.hale"))
    params = make_state(1).params
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(InputError, match=r"2: damaged: arrays: "):
            checkpointer.verify(2, {})
        step, restored = checkpointer.restore_part("params", abstract(params), DESCRIPTION)
    assert step == 1
    assert_bitwise_equal(restored, params)
    assert restore(tmp_path)[0] == 1


@pytest.mark.slow
def test_a_damaged_checkpoint_does_not_count_as_the_best(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        for step, loss in ((1, 2.0), (2, 1.0)):
            checkpointer.save(step, make_state(step), DESCRIPTION, eval_loss=loss)
        assert checkpointer.best_eval_loss() == 1.0
    truncate(tmp_path / "2")
    with Checkpointer(tmp_path, keep_newest=1) as checkpointer:
        # Known from its manifest, which is whole, before the arrays are found to be damaged.
        assert checkpointer.best_eval_loss() == 1.0
        assert checkpointer.restore(abstract(make_state(0)), DESCRIPTION)[0] == 1
        assert checkpointer.best_eval_loss() == 2.0
        checkpointer.save(2, make_state(2), DESCRIPTION, eval_loss=1.5)
        checkpointer.save(3, make_state(3), DESCRIPTION, eval_loss=3.0)
        assert checkpointer.best_eval_loss() == 1.5
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps() == [2, 3]


@pytest.mark.slow
def test_an_earlier_step_can_be_saved_after_a_damaged_one(tmp_path: Path) -> None:
    save_steps(tmp_path, range(10, 12))
    truncate(tmp_path / "11")
    with Checkpointer(tmp_path, keep_newest=1) as checkpointer:
        assert checkpointer.restore(abstract(make_state(0)), DESCRIPTION)[0] == 10
        checkpointer.save(10, make_state(10), DESCRIPTION)
        assert (tmp_path / "11.damaged").is_dir()
        assert checkpointer.steps() == [10]


@pytest.mark.slow
def test_all_damaged_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_steps(tmp_path, range(1, 3))
    truncate(tmp_path / "1")
    delete_everything(tmp_path / "2")
    with pytest.raises(InputError, match=r"every checkpoint is damaged \(1, 2\)"):
        restore(tmp_path)
    assert capfd.readouterr().err.count("warning: ") == 2


@pytest.mark.slow
def test_no_flipped_byte_anywhere_gives_other_values(tmp_path: Path) -> None:
    save_steps(tmp_path, range(1, 3))
    files = [path for path in files_of(tmp_path / "2") if path.stat().st_size]
    generator = np.random.default_rng(0)
    with Checkpointer(tmp_path) as checkpointer:
        for path in [*files, *generator.choice(files, 20)]:
            data = path.read_bytes()
            altered = bytearray(data)
            altered[generator.integers(len(data))] ^= 1 << generator.integers(8)
            path.write_bytes(altered)
            step, state = checkpointer.restore(abstract(make_state(0)), DESCRIPTION)
            assert_bitwise_equal(state, make_state(step))
            path.write_bytes(data)


@pytest.mark.slow
def test_the_buffers_may_be_donated_as_soon_as_save_returns(tmp_path: Path) -> None:
    """Also: no implicit transfer, which the trainer's guard would refuse."""
    make = jax.jit(lambda key: [jax.random.normal(jax.random.fold_in(key, i), (1024, 512)) for i in range(8)])
    update = jax.jit(lambda arrays: [-3.0 * a for a in arrays], donate_argnums=0)
    state = make(jax.random.key(0))
    target = abstract(state)
    with Checkpointer(tmp_path) as checkpointer:
        with jax.transfer_guard("disallow"):
            checkpointer.save(1, state, {})
            assert checkpointer.steps() == []
            for _ in range(20):
                state = update(state)
            jax.block_until_ready(state)
        restored = checkpointer.restore(target, {})[1]
        assert_bitwise_equal(restored, make(jax.random.key(0)))
        jax.block_until_ready(update(update(restored)))
        assert_bitwise_equal(checkpointer.restore(target, {})[1], make(jax.random.key(0)))


@pytest.mark.slow
def test_the_first_save_of_a_resumed_run_does_not_wait_either(tmp_path: Path) -> None:
    state = [jax.random.normal(jax.random.key(i), (1024, 512)) for i in range(8)]
    for step in (1, 2):
        with Checkpointer(tmp_path, keep_newest=1) as checkpointer:
            checkpointer.save(step, state, {})
            assert step not in checkpointer.steps()


def test_the_description_may_change_as_soon_as_save_returns(tmp_path: Path) -> None:
    description = {"batching": {"rows": 1}}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1), description)
        description["batching"]["rows"] = 2
        assert checkpointer.restore(abstract(make_state(0)), {"batching": {"rows": 1}})[0] == 1


def run_child(script: str, *arguments: object, devices: int = 1, **options: Any) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", f"import jax, sys\n{script}", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


RESHARD = """
import dataclasses, numpy as np, optax
from flax import nnx
from contextlib import nullcontext
from pathlib import Path
from mlm_jax.store.checkpoint import Checkpointer

devices = jax.device_count()
mesh = jax.make_mesh((devices,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

def place(x):
    sharded = jax.sharding.PartitionSpec(*["fsdp" if i == 0 else None for i in range(x.ndim)])
    return jax.sharding.NamedSharding(mesh, sharded)

def make():
    params = nnx.split(nnx.Linear(64, 32, rngs=nnx.Rngs(0)))[1]
    return {"params": params, "opt_state": optax.adamw(1e-3).init(params)}

state = jax.tree.map(lambda x: jax.device_put(x, place(x)), make())
target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), state)
step = int(sys.argv[2])
with Checkpointer(Path(sys.argv[1])) as checkpointer:
    if step > 1:
        restored_step, state = checkpointer.restore(target, {})
        assert restored_step == step - 1
    kernel = state["params"]["kernel"].get_value()
    assert {s.data.shape for s in kernel.addressable_shards} == {(64 // devices, 32)}
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(make()), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    checkpointer.save(step, state, {})
"""


@pytest.mark.slow
def test_restores_onto_another_number_of_devices(tmp_path: Path) -> None:
    for step, devices in enumerate((8, 2, 1, 8), start=1):
        child = run_child(RESHARD, tmp_path, step, devices=devices)
        _, err = child.communicate(timeout=120)
        assert (child.returncode, err) == (0, "")


SAVE_FOR_EVER = """
import itertools
from contextlib import nullcontext
from pathlib import Path
from mlm_jax.store.checkpoint import Checkpointer

checkpointer = Checkpointer(Path(sys.argv[1]), keep_newest=2)
for step in itertools.count(int(sys.argv[2])):
    state = {name: jax.random.bits(jax.random.key(step), (512, 1024)) for name in "abcdef"}
    checkpointer.save(step, state, {})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    """Killed while a save is under way, at a different moment of it each time; the next one goes on."""
    first, left = 1, []
    for delay in (0.0, 0.01, 0.04):
        child = run_child(SAVE_FOR_EVER, tmp_path, first)
        for line in child.stdout:
            if int(line) >= first + 3:
                break
        while not list(tmp_path.glob("*orbax-checkpoint-tmp*")):
            pass
        time.sleep(delay)
        child.kill()
        child.communicate()
        left += tmp_path.glob("*orbax-checkpoint-tmp*")
        with Checkpointer(tmp_path) as checkpointer:
            steps = checkpointer.steps()
            assert len(steps) >= 2
            first = steps[-1] + 1
            for step in steps:
                state = {name: jax.random.bits(jax.random.key(step), (512, 1024)) for name in "abcdef"}
                assert_bitwise_equal(checkpointer._load(step, abstract(state), {}, part=None), state)
    assert left, "no save was interrupted"
    with Checkpointer(tmp_path, keep_newest=2) as checkpointer:
        checkpointer.save(first, state, {})
    assert all(path.name.isdecimal() for path in tmp_path.iterdir())


FULL_DISK = """
import os, resource, signal
from contextlib import nullcontext
from pathlib import Path
from mlm_jax.store.checkpoint import Checkpointer, CheckpointError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
state = {name: jax.random.normal(jax.random.key(0), (256, 1024)) for name in "abcdef"}
target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
checkpointer = Checkpointer(folder)
checkpointer.save(1, state, {})
checkpointer.save(2, state, {})
checkpointer.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for step in (3, 4):
    checkpointer.save(step, state, {})
    try:
        checkpointer.wait()
    except CheckpointError as error:
        print(error)
    print(sorted(os.listdir(folder)))
print(checkpointer.restore(target, {})[0])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpointer.save(5, state, {})
checkpointer.close()
print(checkpointer.steps())
"""


def test_a_failed_write_is_one_line_and_leaves_the_older_ones(tmp_path: Path) -> None:
    child = run_child(FULL_DISK, tmp_path)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, "")
    reason = os.strerror(errno.EFBIG)
    failures = [
        f"the checkpoint of step {step} could not be written to {tmp_path}: {reason}; "
        "older checkpoints are intact: 1, 2"
        for step in (3, 4)
    ]
    assert out.splitlines() == [failures[0], "['1', '2']", failures[1], "['1', '2']", "2", "[1, 2, 5]"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        Checkpointer(tmp_path / "file" / "checkpoints") as checkpointer,
        pytest.raises(CheckpointError) as error,
    ):
        checkpointer.save(1, make_state(1), DESCRIPTION)
    assert "could not be written" in str(error.value)


def test_a_run_is_resumed_from_an_earlier_checkpoint_and_then_from_what_follows(tmp_path: Path) -> None:
    """Even if the process is killed in between, and once the earlier checkpoint is deleted."""
    save_steps(tmp_path, range(1, 5), keep_newest=9)
    abstract_state = abstract(make_state(0))

    def restored(from_step: int | None) -> int:
        with Checkpointer(tmp_path) as checkpointer:
            found = checkpointer.restore(abstract_state, DESCRIPTION, from_step=from_step)
        assert found is not None
        return found[0]

    def names() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    assert [restored(None), restored(2), restored(2)] == [4, 2, 2]
    assert names() == ["1", "2", "3", "4"]
    with Checkpointer(tmp_path, keep_newest=9) as checkpointer:
        checkpointer.restore(abstract_state, DESCRIPTION, from_step=2)
        assert checkpointer.best_eval_loss() == pytest.approx(math.inf)
        checkpointer.save(3, make_state(30), DESCRIPTION)
    assert names() == ["1", "2", "3", "3.superseded", "4.superseded"]
    with Checkpointer(tmp_path, keep_newest=9) as checkpointer:
        found = checkpointer.restore(abstract_state, DESCRIPTION)
        assert found is not None
        assert_bitwise_equal(found[1], make_state(30))
        # A start without from_step continues the same line.
        checkpointer.save(5, make_state(5), DESCRIPTION)
    shutil.rmtree(tmp_path / "2")
    assert [restored(None), restored(2), restored(3)] == [5, 5, 3]
    with pytest.raises(InputError, match="no checkpoint of step 4; there are: 1, 3, 5"):
        restored(4)


def test_an_evaluation_that_did_not_end_is_remembered(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1), DESCRIPTION, unevaluated=True)
        checkpointer.save(2, make_state(2), DESCRIPTION, eval_loss=2.0)
        checkpointer.wait()
        assert [checkpointer.unevaluated(step) for step in (1, 2)] == [True, False]
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.best_eval_loss() == 2.0
        checkpointer.note_eval_loss(1, 1.5)
        assert checkpointer.best_eval_loss() == 1.5
