"""How a measured network bears what it was not trained on: corrupted images, and images outside its classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from fashion_cnn.analysis.figure_file import save_figure
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.measuring import Measured, Split
from fashion_cnn.evaluation.outlier_plots import plot_outliers
from fashion_cnn.evaluation.outliers import measure_outliers
from fashion_cnn.evaluation.robustness import (
    Robustness,
    corruption_errors,
    measure_robustness,
    read_robustness,
    require_comparable,
)
from fashion_cnn.evaluation.robustness_plots import plot_robustness
from fashion_cnn.runs import find_measured, write_whole

FIGURES_FILE = "robustness.json"
# Of `experiment=baseline`, seed 1, on the test images of Fashion-MNIST.
RECORDED_BASELINE = Path(__file__).parent / "baseline_robustness.json"
RECORDED = "experiment=baseline, as recorded"


class Baseline(NamedTuple):
    """What a network is held against, and where that was read."""

    name: str
    robustness: Robustness


def read_baseline(reference: str, split: Split, runs_dir: Path) -> Baseline:
    """What `evaluate` measured of a run, of several as one (by the folder that it wrote), or a file of that.

    Raises UserError where there is none, or none that a measurement can be held against.
    """
    path = Path(reference).expanduser()
    written = (path, path / split / FIGURES_FILE, path / FIGURES_FILE, path / "evaluation" / split / FIGURES_FILE)
    file = next((file for file in written if file.is_file()), None)
    if file is None:
        run = find_measured(reference, runs_dir)
        path, file = run.path, run.evaluation / split / FIGURES_FILE
    robustness = read_robustness(file)
    require_comparable(robustness, robustness.data_sha256)
    return Baseline(str(path), robustness)


def measure_strength(
    measured: Measured, folder: Path, *, baseline: Baseline | None, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write what the network bears into `folder`, as JSON and drawn, and return it.

    baseline: None for the recorded one of `model=baseline`, which is of Fashion-MNIST's test images. progress: called
    with the passes made and of all passes. Raises UserError where `baseline` is of other images.
    """
    if baseline and baseline.robustness.data_sha256 != measured.fingerprint:
        raise UserError(
            f"{baseline.name} was measured on other images: measure both on the same split of the same data."
        )
    targets, batch_size = measured.predictions.targets, measured.data.eval_batch_size
    result = measure_robustness(measured.classify, measured.images, targets, batch_size=batch_size, progress=progress)
    left_out = measured.data.left_out_split.images if measured.split == "test" else None
    outliers = measure_outliers(measured.classify, measured.images, left_out=left_out, batch_size=batch_size)
    if baseline is None and (recorded := read_robustness(RECORDED_BASELINE)).data_sha256 == result.data_sha256:
        baseline = Baseline(RECORDED, recorded)
    errors = stored = None
    if baseline:
        errors = corruption_errors(result, baseline.robustness)
        stored = {"baseline": baseline.name, "mean": errors.mean, "by_corruption": errors.by_corruption}
    outcome = result.to_dict() | {"corruption_errors": stored, "outliers": outliers.to_dict()}
    heat_map = Figure(figsize=(7.5, 6.5), layout="constrained")
    plot_robustness(
        result, heat_map.subplots(), title=f"Accuracy on corrupted images of {measured.split}", errors=errors
    )
    save_figure(heat_map, folder / "robustness.png")
    save_figure(plot_outliers(outliers), folder / "outliers.png")
    write_whole(folder / FIGURES_FILE, json.dumps(outcome, indent=2) + "\n")
    return outcome
