"""Report of a comparison: Markdown, CSV and plots in a folder, also shown in TensorBoard."""

import re
import shutil
import statistics
from pathlib import Path

from fashion_cnn.analysis.comparison import Comparison, Group, comparison_csv, comparison_markdown
from fashion_cnn.analysis.learning_curve import LearningCurve, describe_learning_curve, fit_learning_curve
from fashion_cnn.analysis.tensorboard import TensorBoardWriter, bands_layout
from fashion_cnn.errors import unusable
from fashion_cnn.metrics.predictions import write_predictions
from fashion_cnn.plots.comparison import plot_comparison, plot_learning_curve
from fashion_cnn.plots.style import add_subtitle, save_figure
from fashion_cnn.runs import write_atomically

# Folder of the events with the bands over the runs of a group.
_BANDS = "bands"
_MAX_FOLDER = 80
_FRACTION = "data.train_fraction"
_IMAGES = "train_images"
# Settings that differ with the fraction where all sizes have equally many training steps.
_EPOCHS = {"trainer.max_epochs", "trainer.check_val_every_n_epoch"}


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, list[str]]:
    """Write the report into a folder, in place of an earlier one.

    Returns:
        The Markdown file, and the names of the plots.

    Raises:
        UserError: if the folder cannot be written.
    """
    plots, remarks = dict(plot_comparison(comparison)), []
    curve = _learning_curve(comparison)
    if curve is not None:
        plots["learning_curve"] = plot_learning_curve(curve)
        remarks.append(describe_learning_curve(curve))
    text = comparison_markdown(comparison, [f"{name}.png" for name in plots], remarks)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [
            *folder.glob("against_*.png"),
            *folder.glob("learning_curve.png"),
            *folder.glob("out_of_fold.npz"),
        ]:
            stale.unlink()
        for name, figure in plots.items():
            add_subtitle(figure, comparison.name)
            save_figure(figure, folder / f"{name}.png")
        out_of_fold = {group.label or "all": p for group in comparison.groups if (p := group.out_of_fold) is not None}
        if out_of_fold:
            write_predictions(folder / "out_of_fold.npz", out_of_fold)
        write_atomically(folder / "comparison.csv", comparison_csv(comparison))
        write_atomically(folder / "comparison.md", text)
    except OSError as error:
        raise unusable(error, folder, "choose another out=DIR") from error
    writer = TensorBoardWriter(folder)
    for name in plots:
        writer.add_image(name, folder / f"{name}.png", 0)
    writer.add_text("comparison", text.partition("\n![")[0], 0)
    if names := _write_bands(comparison, folder / _BANDS):
        writer.add_layout(bands_layout(names))
    writer.close()
    return folder / "comparison.md", list(plots)


def _write_bands(comparison: Comparison, folder: Path) -> list[str]:
    """Write mean ± standard deviation over the runs of each group for TensorBoard, in place of earlier ones.

    Returns:
        The names of the metrics.
    """
    if not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    names: dict[str, None] = {}
    for group in comparison.groups:
        if bands := group.bands():
            # Settings of someone else may hold characters that no directory name can have.
            name = re.sub(r"[^\w.=, -]", "-", group.label)[:_MAX_FOLDER].strip(". ") or "all runs"
            writer = TensorBoardWriter(folder / name)
            for metric, band in bands.items():
                writer.add_band(metric, *(values.tolist() for values in band))
            writer.close()
            names |= dict.fromkeys(bands)
    return list(names)


def _learning_curve(comparison: Comparison) -> LearningCurve | None:
    """Fit the learning curve if only the train fraction differs and at least two fractions are measured.

    The number of epochs may differ with it, so that each fraction has one.
    """
    measured = [group for group in comparison.groups if group.values(_IMAGES) and group.values("val/accuracy")]
    fractions = {group.factors.get(_FRACTION) for group in measured}
    if set(comparison.factors) - _EPOCHS != {_FRACTION} or len(fractions) < max(2, len(measured)):
        return None
    measured.sort(key=_mean_images)
    errors = [[1 - accuracy for accuracy in group.values("val/accuracy")] for group in measured]
    return fit_learning_curve([_mean_images(group) for group in measured], errors)


def _mean_images(group: Group) -> float:
    return statistics.fmean(group.values(_IMAGES))
