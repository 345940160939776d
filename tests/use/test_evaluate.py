"""Evaluations of a model on prepared data: a run and its exports agree, and the output states rows and masks."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest

from mlm_jax.config import TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.config.settings import from_json, to_json
from mlm_jax.config.training_record import TrainingRecord, record_of
from mlm_jax.errors import InputError
from mlm_jax.formats.model_folder import read_model_folder
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.run import trainer
from mlm_jax.run.records import read_records
from mlm_jax.run.trainer import train
from mlm_jax.store import conversion
from mlm_jax.store.conversion import convert
from mlm_jax.store.native_format import read
from mlm_jax.store.reference_outputs import Reference
from mlm_jax.use.evaluate import evaluate_model
from mlm_jax.use.masked_lm import MaskedLM
from tests.run_small import config_of, prepared, run_script, uninterrupted


def edited_run(folder: Path, **settings: Any) -> Path:
    """Returns a copy of the trained run whose config has other settings."""
    folder.mkdir()
    for path in uninterrupted().iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = from_json(TrainConfig, (uninterrupted() / "config.json").read_text())
    (folder / "config.json").write_text(to_json(replace(config, **settings)))
    return folder


@pytest.mark.slow
def test_a_run_and_its_exports_have_one_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))
    data, masking = prepared(200, 240), MaskingRecipe(mask_selection_rate=0.3)
    config = from_json(TrainConfig, (uninterrupted() / "config.json").read_text())
    run = edited_run(
        tmp_path / "run", data=replace(config.data, eval_packing="document"), eval_masking=masking
    )
    MaskedLM.from_preset(run).save(tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "hugging_face", "hugging_face")
    convert(tmp_path / "hugging_face", tmp_path / "ours", "mlm_jax")
    found = evaluate_model(run, data)
    assert (found.sequence_length, found.packing, found.masking["mask_selection_rate"]) == (
        20,
        "document",
        0.3,
    )
    for name in ("saved", "ours"):
        assert evaluate_model(tmp_path / name, data) == found
    flags: dict[str, Any] = {
        "sequence_length": 24,
        "packing": "packed",
        "attend_within_documents": True,
        "masking": {"mask_selection_rate": 0.2},
    }
    other = evaluate_model(run, data, **flags)
    assert other == evaluate_model(tmp_path / "saved", data, **flags)
    assert (other.sequence_length, other.packing, other.attend_within_documents) == (24, "packed", True)
    assert (other.masking["mask_selection_rate"], other.masking["mask_selection_length"]) == (0.2, 5)


def test_the_script_prints_rows_and_masks_and_warns_beyond_the_trained_length() -> None:
    arguments = ("evaluate", uninterrupted(), "--data", prepared(200, 240))
    by_default, longer = run_script(*arguments), run_script(*arguments, "--sequence-length", 24)
    assert (by_default.returncode, by_default.stderr) == (0, "")
    printed = json.loads(by_default.stdout)
    assert printed["mlm_loss"] == pytest.approx(
        read_records(uninterrupted() / "eval.jsonl")[-1]["mlm_loss"], rel=1e-6
    )
    assert (printed["sequence_length"], printed["packing"], printed["masking"]["unit"]) == (
        20,
        "packed",
        "token",
    )
    assert json.loads(longer.stdout)["sequence_length"] == 24
    assert "a row has 24 tokens, and the model was trained with rows of at most 20" in longer.stderr
    whole = run_script(*arguments, "--masking.unit", "whole_word", "--packing", "document")
    printed = json.loads(whole.stdout)
    assert (printed["packing"], printed["masking"]["unit"]) == ("document", "whole_word")
    for flags, message in (
        (("--sequence-length", 25), "sequence_length = 25: must be at most the model's 24"),
        (("--sequence-length", 0), "sequence_length = 0: must be at least 3"),
        (("--masking.mask-selection-rate", 2), "mask_selection_rate = 2.0: must be in [0, 1]"),
        (
            ("--packing", "document", "--attend-within-documents"),
            "attend_within_documents = True: must be False",
        ),
        (
            ("--masking.rate-schedule", "linear", "--masking.final-mask-selection-rate", 0.1),
            "must be 'constant'",
        ),
    ):
        refused = run_script(*arguments, *flags)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert message in refused.stderr


def test_the_longest_rows_of_training_include_those_before_init_from(tmp_path: Path) -> None:
    config = from_json(TrainConfig, (uninterrupted() / "config.json").read_text())
    longer = edited_run(tmp_path / "longer", data=replace(config.data, sequence_length=24))
    MaskedLM.from_preset(longer).save(tmp_path / "saved")
    for source, longest in (
        (longer, 24),
        (next((longer / "checkpoints").iterdir()), 24),
        (tmp_path / "saved", 24),
        (uninterrupted(), 20),
        # Not known any more, or never known.
        (tmp_path / "gone", None),
        ("bert_tiny_en_uncased", None),
    ):
        run = edited_run(tmp_path / f"from_{Path(source).name}", init_from=str(source))
        record = read(run).model.training
        assert record is not None
        assert (record.sequence_length, record.longest_rows) == (20, longest)
    circle = edited_run(tmp_path / "circle", init_from=str(tmp_path / "circle"))
    assert read(circle).model.training == record_of(config, None)


def test_records_of_damaged_models_are_rejected(tmp_path: Path) -> None:
    MaskedLM.from_preset(uninterrupted()).save(tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    settings = json.loads(file.read_text())
    assert settings["training"] == asdict(record_of(config_of(tmp_path), 20))
    for record in ({}, {"sequence_length": 3}, settings["training"] | {"packing": "other"}, 3, "packed"):
        file.write_text(json.dumps(settings | {"training": record}))
        with pytest.raises(InputError, match=r"config\.json: training: "):
            read_model_folder(tmp_path / "saved")
    file.write_text(json.dumps(settings | {"training": {"sequence_length": 3}}))
    with pytest.raises(InputError, match="training: must be null or have sequence_length, packing, "):
        read_model_folder(tmp_path / "saved")


def test_evaluations_in_documents_of_their_own_need_no_restriction() -> None:
    config = TrainConfig()
    data = replace(config.data, attend_within_documents=True, eval_packing="document")
    record = record_of(replace(config, data=data), None)
    assert isinstance(record, TrainingRecord)
    assert (record.packing, record.attend_within_documents) == ("document", False)


def test_evaluation_rejects_data_of_another_tokenizer() -> None:
    with pytest.raises(InputError, match="prepared with tokenizer"):
        evaluate_model(uninterrupted(), prepared(0, 200, 280))


@pytest.mark.slow
def test_a_run_within_documents_is_evaluated_within_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    config = config_of(tmp_path / "run", num_steps=4, compilation_cache_dir=None)
    config = replace(
        config,
        data=replace(config.data, attend_within_documents=True),
        model=replace(config.model, initializer_stddev=0.2),
    )
    train(config)
    (record,) = read_records(tmp_path / "run" / "eval.jsonl")
    evaluation = evaluate_model(tmp_path / "run", prepared(200, 240))
    assert evaluation.mlm_loss == pytest.approx(record["mlm_loss"], rel=1e-6)
    across = evaluate_model(tmp_path / "run", prepared(200, 240), attend_within_documents=False)
    assert abs(across.mlm_loss - record["mlm_loss"]) > 1e-3
