"""Settings on the command line, after the config that they change."""

from dataclasses import replace
from pathlib import Path

import pytest

from mlm_jax.commands.config_flags import COMMON, parse_config, parse_config_and_flags
from mlm_jax.commands.flags import Flag, flags_of
from mlm_jax.config import DistributedConfig, TrainConfig
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.config.settings import field_docs, to_json
from mlm_jax.errors import InputError

SETTINGS = flags_of(TrainConfig, TrainConfig())


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(to_json(TrainConfig()))
    return str(tmp_path / "config.json")


def test_settings_change_the_config(tmp_path: Path) -> None:
    path = tmp_path / "c.py"
    path.write_text(
        "from mlm_jax.config import TrainConfig\ndef config(): return TrainConfig(num_steps=9, seed=3)\n"
    )
    flags = [
        "--data.path",
        "there",
        "--mesh.tensor=2",
        "--optimizer.freeze",
        "a/*",
        "b/*",
        "--output-dir",
        "o",
    ]
    config = parse_config([str(path), *flags], "PROG")
    assert (config.num_steps, config.seed) == (9, 3)
    assert (config.data.path, config.mesh.tensor, config.output_dir) == ("there", 2, "o")
    assert config.optimizer.freeze == ("a/*", "b/*")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.field)
def test_every_setting_can_be_given_as_its_own_value(config_file: str, setting: Flag) -> None:
    values = setting.default if setting.is_tuple else [str(setting.default)]
    assert parse_config([config_file, setting.name, *values], "PROG") == TrainConfig()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--data.attend-within-documents", "True"], True),
        (["--data.attend-within-documents"], True),
        (["--data.attend_within_documents=true"], True),
        (["--data.attend-within-documents", "--data.no-attend-within-documents"], False),
        (["--data.attend-within-documents", "False"], False),
    ],
)
def test_switches_are_given_with_a_value_or_without(
    config_file: str, flags: list[str], expected: bool
) -> None:
    assert parse_config([config_file, *flags], "PROG").data.attend_within_documents is expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--optimizer.learning-rat", "1"],
            "--optimizer.learning-rat: no such flag; did you mean '--optimizer.l",
        ),
        (["--lr", "1e-3"], "--lr: no such flag; did you mean '--optimizer.learning-rate'?"),
        (
            ["--learning-rate", "1e-3"],
            "--learning-rate: no such flag; did you mean '--optimizer.learning-rate'?",
        ),
        (["--learning_rat=1"], "--learning-rat: no such flag; did you mean '--optimizer.learning-rate'?"),
        (["--bs", "8"], "--bs: no such flag; did you mean '--batch-size'?"),
        (["--wd", "8"], "--wd: no such flag; did you mean '--optimizer.weight-decay'?"),
        (["--dropout", "0"], "--dropout: no such flag; did you mean '--model.dropout-rate'?"),
        (["--max_seq_length", "8"], "--max-seq-length: no such flag; did you mean '--data.sequence-length'?"),
        (["--seq-len", "8"], "--seq-len: no such flag; did you mean '--data.sequence-length'?"),
        (["--data", "x"], "--data: no such flag; did you mean '--data.path'?"),
        (
            ["--mlm_probability", "0.2"],
            "--mlm-probability: no such flag; did you mean '--masking.mask-selection-rate'?",
        ),
        (["--num-train-epochs", "3"], "--num-train-epochs: no such flag; did you mean '--num-steps'?"),
        (["--x", "8"], "--x: no such flag"),
        (["--num-step=3"], "--num-step: no such flag; did you mean '--num-steps'?"),
        (["--model.no-poler"], "--model.no-poler: no such flag; did you mean '--model.no-pooler'?"),
        (["--num-steps", "many"], "--num-steps 'many': must be a whole number"),
        (
            ["--optimizer.name", "lmb"],
            "--optimizer.name 'lmb': must be one of 'adamw', 'stable_adamw', 'lamb', 'adafactor', 'muon'; ",
        ),
        (["--optimizer.max-grad-norm", "x"], "--optimizer.max-grad-norm 'x': must be a number or None"),
        (["--num-steps", "0"], "TrainConfig.num_steps = 0: must be at least 1"),
        (["--num-steps"], "--num-steps: expected one argument; "),
        (["stray"], "unrecognized arguments: stray; "),
    ],
)
def test_errors_are_one_line(config_file: str, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_config([config_file, *arguments], "PROG")
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("arguments", [[], ["--num-steps", "3"]])
def test_without_a_config_the_usage_is_shown(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=r"must be a config; usage: PROG CONFIG"):
        parse_config(arguments, "PROG")


def test_a_job_named_by_flags_is_joined_before_a_python_config_is_run(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(
        "import pathlib\nfrom mlm_jax.config import TrainConfig\n"
        "def config():\n"
        "    assert pathlib.Path(__file__).with_name('joined').exists()\n"
        "    return TrainConfig()\n"
    )
    joined: list[DistributedConfig] = []

    def join(job: DistributedConfig) -> None:
        joined.append(job)
        (tmp_path / "joined").touch()

    job = DistributedConfig(coordinator="host:8476", num_processes=2, process_id=1)
    flags = ["--distributed.coordinator", "host:8476", "--distributed.num-processes", "2"]
    config, _ = parse_config_and_flags(
        [str(tmp_path / "c.py"), *flags, "--distributed.process-id", "1"], "PROG", before_config=join
    )
    assert joined == [job]
    assert config == replace(TrainConfig(), distributed=job)
    parse_config_and_flags([str(tmp_path / "c.py"), "--seed", "1"], "PROG", before_config=join)
    assert len(joined) == 1


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        parse_config(arguments, "PROG")
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_numbers_may_be_negative_and_exponential() -> None:
    with pytest.raises(InputError, match=r"learning_rate = -0\.001: must be above 0"):
        parse_config(["demo", "--optimizer.learning-rate", "-1e-3"], "PROG")


def test_help_lists_the_common_settings_on_one_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config_file: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = help_of(capsys, config_file, "--help")
    assert len(rows) < 45
    assert max(map(len, rows)) <= 80
    common = [setting.name for setting in SETTINGS if setting.field in COMMON]
    listed = [row.split()[0] for row in rows if row.startswith("  --")]
    assert len(listed) == len(COMMON) == len(rows) - 1 - rows.index(next(r for r in rows if "common" in r))
    assert set(listed) == set(common)


def test_help_all_lists_every_setting_with_the_value_of_the_config(
    capsys: pytest.CaptureFixture[str], config_file: str
) -> None:
    rows = help_of(capsys, config_file, "--num-steps", "7", "--help-all")
    listed = [row.split()[0] for row in rows if row.startswith("  --")]
    assert sorted(listed) == sorted(setting.name for setting in SETTINGS)
    assert any(row.startswith("  --num-steps 1000 ") for row in rows)


def test_every_setting_has_a_line_of_its_own() -> None:
    for setting in SETTINGS:
        assert len(setting.help) > 10, setting.field
        assert len(setting.help) <= 80, setting.field
        assert setting.help[0].isupper(), setting.field
        assert setting.help.endswith("."), setting.field
    masking = field_docs(MaskingConfig)
    assert masking["mask_token_id"] == "Id of [MASK]."
    assert masking["mask_token_rate"] == "Fraction of selected tokens replaced by [MASK]."
