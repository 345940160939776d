"""The page "Coming from …" has a line for every argument of the installed libraries, and no others."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from tests.test_coming_from import tables

pytestmark = pytest.mark.peers

# Examples are not part of transformers' package: these are the arguments of its main branch in 2025.
RUN_MLM = """
model_name_or_path model_type config_overrides config_name tokenizer_name cache_dir use_fast_tokenizer model_revision
token trust_remote_code dtype low_cpu_mem_usage dataset_name dataset_config_name train_file validation_file
overwrite_cache validation_split_percentage max_seq_length preprocessing_num_workers mlm_probability line_by_line
pad_to_max_length max_train_samples max_eval_samples streaming
"""


@pytest.mark.parametrize(
    "heading", [heading for heading in tables() if "." in heading and heading[-3:] != ".py"]
)
def test_every_argument_of_a_class_has_its_line(heading: str) -> None:
    package, *path = heading.split(".")
    found = pytest.importorskip(package)
    for name in path:
        found = getattr(found, name)
    parameters = inspect.signature(found.__init__).parameters.values()
    names = {each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD} - {"self"}
    assert set(tables()[heading]) == names


@pytest.mark.parametrize("script", ["create_pretraining_data.py", "run_pretraining.py"])
def test_every_flag_of_a_script_has_its_line(script: str) -> None:
    spec = importlib.util.find_spec("bert")
    if spec is None or spec.origin is None:
        pytest.skip("bert-tensorflow is not installed")
    source = (Path(spec.origin).parent / script).read_text()
    flags = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
    assert flags
    # Added to the repository after the release of the package.
    assert set(tables()[script]) - {"do_whole_word_mask"} == flags


def test_every_argument_of_run_mlm_has_its_line() -> None:
    assert set(tables()["run_mlm.py"]) == set(RUN_MLM.split())
