"""The package as a whole: its public names and what it imports."""

import subprocess
import sys
from pathlib import Path

import mlm_jax

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there() -> None:
    for name in mlm_jax.__all__:
        assert getattr(mlm_jax, name) is not None
    assert set(mlm_jax.__all__) == set(mlm_jax._HOME_OF)
    promised = (
        "BertConfig MaskingConfig DataConfig OptimizerConfig MeshConfig TrainConfig PRESETS mask_tokens MaskedTokens "
        "example_keys BertEncoder BertMaskedLM Tokenizer train count_parameters"
    )
    assert set(promised.split()) <= set(dir(mlm_jax))


def test_training_imports_no_other_framework_and_nothing_to_draw_with() -> None:
    """torch takes two seconds to import, matplotlib one."""
    script = (
        "import sys, mlm_jax.run.trainer; print(*{'torch', 'tensorflow', 'matplotlib'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "\n"
