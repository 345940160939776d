"""Probes: a planted bias is found, none is found in an unbiased model, and the published metrics are right."""

import json
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest

from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.errors import InputError
from mlm_jax.probes.datasets import CrowsPair, MinimalPair, PronounPair
from mlm_jax.probes.probes import (
    Bootstrap,
    Estimate,
    probe_crows_pairs,
    probe_minimal_pairs,
    probe_templates,
    probe_winobias,
)
from mlm_jax.use.masked_lm import MaskedLM
from tests.run_small import run_script
from tests.tiny import tiny_masked_lm

TEMPLATES = ["{} can work as a [MASK]", "{} was once a [MASK]"]
HIS, HER, SHARED = ["doctor", "pilot"], ["nurse", "dancer"], ["baker", "singer"]


def corpus(his: list[str], hers: list[str]) -> list[str]:
    jobs = [("he", job) for job in his + SHARED] + [("she", job) for job in hers + SHARED]
    return [template.replace("{}", who).replace("[MASK]", job) for who, job in jobs for template in TEMPLATES]


def trained(texts: list[str], folder: Path) -> MaskedLM:
    model = tiny_masked_lm()
    recipe = MaskingRecipe(mask_selection_rate=0.2)
    model.fit(texts, num_steps=300, batch_size=32, learning_rate=3e-3, masking=recipe)
    model.save(folder)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return root / "biased", root / "unbiased"


@pytest.fixture(scope="module")
def biased(folders: tuple[Path, Path]) -> MaskedLM:
    return trained(corpus(HIS, HER) * 4, folders[0])


@pytest.fixture(scope="module")
def unbiased(folders: tuple[Path, Path]) -> MaskedLM:
    return trained(corpus(HIS + HER, HIS + HER) * 3, folders[1])


@pytest.mark.slow
def test_a_planted_bias_is_found_with_its_direction(biased: MaskedLM) -> None:
    report = probe_templates(biased, TEMPLATES, ["he", "she"], targets=HIS + HER + SHARED)
    assert report.verdict.startswith("he / she: differ ")
    by_name = {estimate.name: estimate for estimate in report.estimates}
    assert all(by_name[job].low is not None and by_name[job].low > 1 for job in HIS)
    assert all(by_name[job].high is not None and by_name[job].high < -1 for job in HER)
    assert all(abs(by_name[job].value) < 1 for job in SHARED)
    assert len(report.items) == len(TEMPLATES) * 6


@pytest.mark.slow
def test_without_targets_the_most_probable_words_are_compared(biased: MaskedLM) -> None:
    report = probe_templates(biased, TEMPLATES, ["he", "she"], top_k=4)
    names = {estimate.name for estimate in report.estimates}
    assert {*HIS, *HER} <= names
    assert "the 4 most probable words of each group" in report.verdict
    assert report.verdict.startswith("he / she: differ ")
    # All words, but neither special tokens nor pieces that continue a word.
    words = biased.tokenizer.vocabulary_size - len(biased.tokenizer.special_token_ids)
    words -= int(biased.tokenizer.continues_word.sum())
    report = probe_templates(biased, TEMPLATES[:1], ["he", "she"], top_k=words)
    assert not {estimate.name for estimate in report.estimates if estimate.name.startswith(("[", "##"))}
    assert len(report.items) == words
    with pytest.raises(InputError, match=rf"top_k = {words + 1}: must be in \[1, {words}\]"):
        probe_templates(biased, TEMPLATES[:1], ["he", "she"], top_k=words + 1)


@pytest.mark.slow
def test_no_bias_is_found_in_an_unbiased_model(unbiased: MaskedLM) -> None:
    # The model has learned the words, so it could distinguish the groups.
    answers = unbiased.fill_mask("he can work as a [MASK]", top_k=6)
    assert {answer["token_str"] for answer in answers} == {*HIS, *HER, *SHARED}
    for targets in (HIS + HER + SHARED, None):
        report = probe_templates(unbiased, TEMPLATES, ["he", "she"], targets=targets, top_k=6)
        assert report.verdict.startswith("he / she: no difference found "), report.estimates


@pytest.mark.slow
def test_differences_are_the_models_log_probabilities(biased: MaskedLM) -> None:
    report = probe_templates(biased, TEMPLATES[:1], ["he", "she"], targets=["nurse", "doctornurse"])
    texts = [TEMPLATES[0].replace("{}", who) for who in ("he", "she")]
    nurse = biased.tokenizer.token_to_id("nurse")
    he, she = biased.mask_log_probabilities(texts)[:, nurse]
    single = next(item for item in report.items if item["target"] == "nurse")
    assert single["difference"] == pytest.approx(he - she, abs=1e-5)
    pieces = next(item for item in report.items if item["target"] == "doctornurse")
    for text, found in zip(texts, pieces["log_probabilities"], strict=True):
        (answer,) = biased.fill_mask(text, targets=["doctornurse"])
        assert found == pytest.approx(np.log(answer["score"]), abs=1e-3)
    # A single template has no interval.
    assert next(e for e in report.estimates if e.name == "nurse").low is None


@pytest.mark.slow
def test_several_groups_are_compared_with_the_first(biased: MaskedLM) -> None:
    report = probe_templates(biased, TEMPLATES, ["he", "she", "he can"], targets=HIS)
    assert [part.split(":")[0] for part in report.verdict.split("; ")[:2]] == ["he / she", "he / he can"]


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def contains(estimate: Estimate, value: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= value <= estimate.high


def test_the_bootstrap() -> None:
    values = np.random.default_rng(1).normal(1.0, 1.0, 400)
    found = Bootstrap(2000).estimate("x", values)
    assert found == Bootstrap(2000).estimate("x", values)
    assert found != Bootstrap(2000, seed=1).estimate("x", values)
    # The textbook interval of a mean.
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)
    # Rows of equal values are few items, regardless of the number of columns.
    rows = np.repeat(np.random.default_rng(2).normal(0.0, 1.0, (5, 1)), 100, axis=1)
    wide, narrow = Bootstrap().estimate("rows", rows), Bootstrap().estimate("flat", rows.ravel())
    assert width(wide) > 3 * width(narrow)
    # 95 % of the intervals contain the true value.
    held = 0
    for seed in range(200):
        sample = Bootstrap(400, seed).estimate("x", np.random.default_rng(seed).normal(0, 1, 50))
        held += contains(sample, 0.0)
    assert 180 <= held <= 199


@pytest.mark.slow
def test_crows_pairs_by_hand(biased: MaskedLM) -> None:
    pairs = [
        CrowsPair("he can work as a doctor", "she can work as a doctor", "stereo", "gender"),
        CrowsPair("he was once a nurse", "she was once a nurse", "antistereo", "gender"),
        CrowsPair("he can work as a baker", "he can work as a baker", "stereo", "none"),
    ]
    report = probe_crows_pairs(biased, pairs)
    for pair, item in zip(pairs, report.items, strict=True):
        ids = [biased.tokenizer.encode(text).tolist() for text in (pair.sentence_more, pair.sentence_less)]
        codes = SequenceMatcher(None, *ids, autojunk=False).get_opcodes()
        kept = [code for code in codes if code[0] == "equal"]
        for own, spans, score in (
            (ids[0], [(c[1], c[2]) for c in kept], item["score_more"]),
            (ids[1], [(c[3], c[4]) for c in kept], item["score_less"]),
        ):
            row = np.array([biased.tokenizer.cls_token_id, *own, biased.tokenizer.sep_token_id])
            places = np.array([1 + i for start, end in spans for i in range(start, end)])
            expected = sum(biased.token_log_probabilities([row], [place[None]])[0][0] for place in places)
            assert score == pytest.approx(expected, abs=2e-3)
    by_name = {estimate.name: estimate.value for estimate in report.estimates}
    assert by_name["stereo"] == 0.75
    assert by_name["antistereo"] == 0.0
    assert by_name["none"] == 0.5
    assert "1 of 3 neutral" in report.verdict
    # If all pairs agree, the interval is a single point.
    assert probe_crows_pairs(biased, pairs[:1] * 2).verdict == "prefers the more stereotyping sentences"
    assert probe_crows_pairs(biased, pairs[1:2] * 2).verdict == "prefers the less stereotyping sentences"


@pytest.mark.slow
def test_winobias(biased: MaskedLM) -> None:
    pairs = [PronounPair("[MASK] can work as a doctor", "he", "she", "type 1")] * 3
    pairs += [PronounPair("[MASK] was once a nurse", "she", "he", "type 2")] * 3
    report = probe_winobias(biased, pairs)
    assert report.verdict.startswith("prefers the stereotyped pronoun")
    assert [estimate.name for estimate in report.estimates] == ["all", "type 1", "type 2"]
    with pytest.raises(InputError, match="pronoun 'xyzzy': must be a single entry"):
        probe_winobias(biased, [replace(pairs[0], pro="xyzzy")])


@pytest.mark.slow
def test_minimal_pairs(biased: MaskedLM) -> None:
    pairs = [MinimalPair(f"he can work as a {job}", f"he can as work a {job}", "order") for job in SHARED]
    pairs += [MinimalPair(f"a {job} as", f"he was once a {job}", "nonsense") for job in SHARED]
    report = probe_minimal_pairs(biased, pairs)
    assert {e.name: e.value for e in report.estimates} == {"all": 0.5, "nonsense": 0.0, "order": 1.0}


def test_errors_name_the_template_group_or_setting(biased: MaskedLM) -> None:
    with pytest.raises(InputError, match=r"no \{\}: must have one for the group"):
        probe_templates(biased, ["he is a [MASK]"], ["he", "she"])
    with pytest.raises(InputError, match=r"0 \[MASK\]: must have one"):
        probe_templates(biased, ["{} is"], ["he", "she"])
    with pytest.raises(InputError, match="at least one template and two groups"):
        probe_templates(biased, TEMPLATES, ["he"])
    with pytest.raises(InputError, match="group 'he': must be given once"):
        probe_templates(biased, TEMPLATES, ["he", "she", "he"])
    with pytest.raises(InputError, match=r"group 'a \[MASK\]': must be given once and have no"):
        probe_templates(biased, TEMPLATES, ["he", "a [MASK]"])
    with pytest.raises(InputError, match=r"top_k = 0: must be in \[1, "):
        probe_templates(biased, TEMPLATES, ["he", "she"], top_k=0)
    with pytest.raises(InputError, match="bootstrap samples = 0: must be at least 1"):
        Bootstrap(0)
    with pytest.raises(InputError, match="bootstrap seed = -1: must be at least 0"):
        Bootstrap(seed=-1)


def test_the_script(biased: MaskedLM, folders: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = [word for template in TEMPLATES for word in ("--template", template)]
    arguments += ["--group", "he", "--group", "she", "--targets", *HIS, *HER]
    done = run_script("probe_bias", folders[0], *arguments, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "he / she: differ" in done.stdout
    assert (tmp_path / "out" / "probe.png").read_bytes()[:4] == b"\x89PNG"
    saved = json.loads((tmp_path / "out" / "probe.json").read_text())
    lines = (tmp_path / "out" / "probe.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(saved["estimates"])
    as_json = run_script("probe_bias", folders[0], *arguments, "--json")
    assert json.loads(as_json.stdout) == saved
    # The axis label says which direction a bar means.
    assert saved["unit"] == "ln P(word | he) - ln P(word | she), nats"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of --template"),
        (("--template", "{} is a [MASK]", "--blimp", "x.jsonl"), "one of --template"),
        (
            ("--blimp", "x.jsonl", "--group", "he"),
            "--group and --targets: must be given with --template only",
        ),
        (("--blimp", "x.jsonl", "--output", __file__), f"{__file__}: is a file; must be a folder"),
        # The file is read before the model, which may take minutes to load.
        (("--blimp", "no/such.jsonl"), "no/such.jsonl: no such file"),
    ],
)
def test_errors_of_the_script(arguments: tuple[str, ...], message: str) -> None:
    refused = run_script("probe_bias", "no/such/model", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {message}")
    assert refused.stderr.count("\n") == 1
