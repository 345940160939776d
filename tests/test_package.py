"""The package as a whole: its public names and its floor plan."""

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


def test_the_readme_names_every_file_of_the_package() -> None:
    readme = (ROOT / "README.md").read_text()
    files = [path for path in (ROOT / "mlm_jax").rglob("*.py") if path.name != "__init__.py"]
    assert [path.name for path in files if f" {path.name} " not in readme] == []
