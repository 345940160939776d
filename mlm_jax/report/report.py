"""Writes a sweep's report: report.md, report.csv, runs.csv, report.html, losses.png and differences.png."""

from pathlib import Path

from mlm_jax.files.atomic import write_atomically
from mlm_jax.files.folder_lock import lock_folder
from mlm_jax.report.page import page
from mlm_jax.report.results import results_of
from mlm_jax.report.state import read_sweep
from mlm_jax.report.tables import markdown, results_csv, runs_csv

REPORT_FILE = "report.md"


def write_report(sweep_folder: Path) -> Path:
    """Writes the results so far into the folder of a sweep, each file atomically, and returns the path of report.md.

    A sweep may still be running or have failed runs; the report states this. Pictures with nothing to draw are left
    out. Imports matplotlib.

    Raises:
        InputError: the folder does not contain a sweep, or a file in it is damaged.
    """
    # If two processes write the report, the one with newer results must be the last.
    with lock_folder(sweep_folder, wait=True):
        return _write_report(sweep_folder)


def _write_report(sweep_folder: Path) -> Path:
    from mlm_jax.report.pictures import differences_picture, losses_picture

    sweep = read_sweep(sweep_folder)
    drawn = {
        "losses.png": ("Evaluation loss over steps", losses_picture(sweep)),
        "differences.png": (
            f"Difference from {sweep.baseline} with 95% intervals",
            differences_picture(sweep, results_of(sweep)),
        ),
    }
    for name, (_, content) in drawn.items():
        if content is None:
            (sweep_folder / name).unlink(missing_ok=True)
        else:
            write_atomically(sweep_folder / name, content)
    captions = {name: caption for name, (caption, content) in drawn.items() if content is not None}
    texts = {
        "report.csv": results_csv(sweep),
        "runs.csv": runs_csv(sweep),
        "report.html": page(sweep),
        REPORT_FILE: markdown(sweep, captions),
    }
    for name, text in texts.items():
        write_atomically(sweep_folder / name, text.encode())
    return sweep_folder / REPORT_FILE
