"""Files of a sweep's report: report.md, report.csv, runs.csv, report.html, losses.png, differences.png."""

from pathlib import Path

from mlm_jax.files import write_atomically
from mlm_jax.report.page import page
from mlm_jax.report.results import results_of
from mlm_jax.report.state import read_sweep
from mlm_jax.report.tables import markdown, results_csv, runs_csv
from mlm_jax.store.folder_lock import lock_folder

REPORT_FILE = "report.md"


def write_report(sweep_folder: Path) -> Path:
    """Writes the results so far into the folder of a sweep, each file whole or not at all; returns report.md.

    A sweep may still be running or have failed runs; the report says so. A picture with nothing to draw is left out.
    Imports matplotlib.

    Raises:
        InputError: the folder does not hold a sweep, or a file in it is damaged.
    """
    # If two processes write it at once, the one that knows more must be the last.
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
