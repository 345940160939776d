import subprocess
import sys
from pathlib import Path

from matplotlib.image import imread

from mlm_jax.report.report import write_report
from tests.report.sweeps import settings_of, write_plan, write_run, write_sweep

FILES = {"report.md", "report.csv", "runs.csv", "report.html", "losses.png", "differences.png"}


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()} - {"sweep.json", "lock"}


def test_a_report_has_all_its_files(tmp_path: Path) -> None:
    assert write_report(write_sweep(tmp_path)) == tmp_path / "report.md"
    assert written(tmp_path) == FILES
    text = (tmp_path / "report.md").read_text()
    for picture in ("losses.png", "differences.png"):
        assert f"]({picture})" in text
        assert imread(tmp_path / picture).shape[1] > 800
    assert "0.050 nats lower" in (tmp_path / "report.html").read_text()


def test_a_report_grows_with_the_sweep(tmp_path: Path) -> None:
    write_plan(tmp_path, ["rate_15", "rate_30"], [0, 1])
    write_report(tmp_path)
    assert written(tmp_path) == FILES - {"losses.png", "differences.png"}
    for number, trial in enumerate(("rate_15", "rate_30")):
        write_run(tmp_path / trial / "seed_0", settings_of(number) | {"seed": 0}, 2.1 + 0.1 * number)
        write_report(tmp_path)
        assert written(tmp_path) == FILES - (set() if number else {"differences.png"})
    assert "2 of 4 runs finished" in (tmp_path / "report.md").read_text()
    # A run that is started again has no result, and a difference of before would be of nothing.
    (tmp_path / "rate_30" / "seed_0" / "outcome.json").unlink()
    write_report(tmp_path)
    assert "differences.png" not in written(tmp_path)
    assert "differences.png" not in (tmp_path / "report.md").read_text()


def test_a_report_is_written_without_jax(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from mlm_jax.report.report import write_report;"
    script += "early = 'matplotlib' in sys.modules; write_report(Path(sys.argv[1]));"
    script += "print(early, 'matplotlib' in sys.modules, 'jax' in sys.modules)"
    folder = str(write_sweep(tmp_path))
    assert subprocess.check_output([sys.executable, "-c", script, folder], text=True) == "False True False\n"
