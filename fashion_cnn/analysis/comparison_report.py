"""What a comparison leaves: Markdown, CSV and figures, and the same in TensorBoard."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from fashion_cnn.analysis.comparison import Comparison, Group, comparison_csv, comparison_markdown
from fashion_cnn.analysis.learning_curve import LearningCurve, describe_learning_curve, fit_learning_curve
from fashion_cnn.analysis.tensorboard import TensorBoardWriter
from fashion_cnn.errors import UserError
from fashion_cnn.plots.comparison import plot_comparison, plot_learning_curve
from fashion_cnn.plots.style import save_figure
from fashion_cnn.runs import write_atomically

_FRACTION = "data.train_fraction"
_IMAGES = "train_images"


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, list[str]]:
    """Write all of it into `folder`; returns the Markdown file and the names of what was drawn.

    Raises UserError where it cannot be written.
    """
    figures, remarks = dict(plot_comparison(comparison)), []
    curve = _learning_curve(comparison)
    if curve is not None:
        figures["learning_curve"] = Figure(figsize=(7, 5), layout="constrained")
        plot_learning_curve(curve, figures["learning_curve"].subplots())
        remarks.append(describe_learning_curve(curve))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in [*folder.glob("against_*.png"), *folder.glob("learning_curve.png")]:
            old.unlink()
        for name, figure in figures.items():
            save_figure(figure, folder / f"{name}.png")
        write_atomically(folder / "comparison.csv", comparison_csv(comparison))
        text = comparison_markdown(comparison, [f"{name}.png" for name in figures], remarks)
        write_atomically(folder / "comparison.md", text)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): say another one with out=DIR.") from error
    board = TensorBoardWriter(folder)
    for name in figures:
        board.add_image(name, folder / f"{name}.png", 0)
    board.add_text("comparison", text.partition("\n![")[0], 0)
    board.close()
    return folder / "comparison.md", list(figures)


def _learning_curve(comparison: Comparison) -> LearningCurve | None:
    """Over the train fractions, where they are all that differs and two or more were measured."""
    measured = [group for group in comparison.groups if group.values(_IMAGES) and group.values("val/accuracy")]
    if comparison.factors != (_FRACTION,) or len(measured) < 2:
        return None
    measured.sort(key=_mean_images)
    errors = [[1 - accuracy for accuracy in group.values("val/accuracy")] for group in measured]
    return fit_learning_curve([_mean_images(group) for group in measured], errors)


def _mean_images(group: Group) -> float:
    return statistics.fmean(group.values(_IMAGES))
