"""How a measured network bears what it was not trained on: corrupted images, and images outside its classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fashion_cnn.analysis.figure_file import save_figure
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.measuring import Measured
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
from fashion_cnn.runs import Run, write_whole

FIGURES_FILE = "robustness.json"
# Of `experiment=baseline`, seed 1, on the test images of Fashion-MNIST.
BASELINE = Path(__file__).parent / "baseline_robustness.json"
RECORDED = "experiment=baseline, as recorded"


def measure_strength(
    measured: Measured, folder: Path, *, baseline: Path | None, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write what the network bears into `folder`, as JSON and drawn, and return it.

    baseline: a run that was measured so on the same split, or its robustness.json; None for the recorded one of
    `model=baseline`, which is of Fashion-MNIST's test images. progress: called with the passes made and of all passes.
    Raises UserError where `baseline` holds no such record, or one of other images.
    """
    against = None if baseline is None else _read_baseline(baseline, measured)
    targets, batch_size = measured.predictions.targets, measured.data.eval_batch_size
    result = measure_robustness(measured.classify, measured.images, targets, batch_size=batch_size, progress=progress)
    left_out = measured.data.left_out_split.images if measured.split == "test" else None
    outliers = measure_outliers(measured.classify, measured.images, left_out=left_out, batch_size=batch_size)
    if against is None and (recorded := read_robustness(BASELINE)).data_sha256 == result.data_sha256:
        against = recorded
    errors = corruption_errors(result, against) if against else None
    stored = errors and {
        "baseline": str(baseline or RECORDED),
        "mean": errors.mean,
        "by_corruption": errors.by_corruption,
    }
    outcome = result.to_dict() | {"corruption_errors": stored, "outliers": outliers.to_dict()}
    heat_map = Figure(figsize=(7.5, 6.5), layout="constrained")
    plot_robustness(
        result, heat_map.subplots(), title=f"Accuracy on corrupted images of {measured.split}", errors=errors
    )
    save_figure(heat_map, folder / "robustness.png")
    save_figure(plot_outliers(outliers), folder / "outliers.png")
    write_whole(folder / FIGURES_FILE, json.dumps(outcome, indent=2) + "\n")
    return outcome


def _read_baseline(path: Path, measured: Measured) -> Robustness:
    """Read before anything is measured, so that a mistake comes out early."""
    file = Run(path).evaluation / measured.split / FIGURES_FILE if path.is_dir() else path
    baseline = read_robustness(file)
    if baseline.data_sha256 != measured.fingerprint:
        raise UserError(f"{file} was measured on other images: measure both on the same split of the same data.")
    require_comparable(baseline, measured.fingerprint)
    return baseline
