"""Report on memorisation, influence and label errors: tables, figures, `report.md` and TensorBoard events."""

import gzip
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fashion_cnn.analysis.memorisation import (
    MEMORISATION_THRESHOLD,
    RELIABILITY_THRESHOLD,
    TOP_FRACTIONS,
    Duplicates,
    LabelErrors,
    Proxy,
    Scores,
    SubsetEnsemble,
    compare_proxies,
    compute_scores,
    find_duplicates,
    find_label_errors,
    read_ensemble,
    write_scores,
)
from fashion_cnn.analysis.tensorboard import TensorBoardWriter, write_projector
from fashion_cnn.analysis.verdict import training_command
from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError, unusable
from fashion_cnn.inference.network import load_data
from fashion_cnn.metrics import memorisation as metrics
from fashion_cnn.metrics.intervals import t_quantile
from fashion_cnn.metrics.memorisation import Decomposition, Floats
from fashion_cnn.plots import memorisation as plots
from fashion_cnn.plots.style import save_figure
from fashion_cnn.runs import Run, format_csv, write_atomically, write_json

_CAPTIONS = {
    "scores": "Histogram of the memorisation scores, and the share of the gap of the most memorised images.",
    "gap_by_class": "Share of the gap by class.",
    "memorised": "The most memorised training images: label, score, and the out-of-sample prediction.",
    "influence": "Memorised training images beside the test images with the largest influence of each.",
    "label_errors": "Likely label errors with the proposed class.",
    "test_images": "Test images with the highest variance, and biased ones with the lowest variance.",
    "duplicates": "Near-duplicates across the splits.",
}
# Number of images in the projector: one half the most memorised, the other a random sample.
_PROJECTED = 2000
# Number of images in the table of TensorBoard.
_TABLE_ROWS = 20


@dataclass(frozen=True)
class Analysis:
    """Results of `analyse`, with the images for the figures.

    Attributes:
        ensemble: networks trained on subsets, with statistics of their predictions.
        scores: memorisation scores and influences; None if the runs give none.
        errors: likely label errors.
        decomposition: bias and variance of the test images; None if the runs store no predictions of them.
        noise: `(M,)`, estimated noise of the test images in [0, 1], 1 minus the highest calibrated mean probability;
            None likewise.
        duplicates: near-duplicates across the splits; None without test images.
        proxies: correlations of the scores with metrics of a single run; empty without one.
        ordinary: that run.
        train: `(N, C, H, W)` uint8, training images.
        test: `(M, C, H, W)` uint8, test images; None without any.
        threshold: score from which an image counts as memorised.
        false_discovery_rate: false discovery rate of the influences.
    """

    ensemble: SubsetEnsemble
    scores: Scores | None
    errors: LabelErrors
    decomposition: Decomposition | None
    noise: Floats | None
    duplicates: Duplicates | None
    proxies: tuple[Proxy, ...]
    ordinary: Run | None
    train: Tensor
    test: Tensor | None
    threshold: float
    false_discovery_rate: float


def analyse(
    runs: Sequence[Run],
    ordinary: Run | None = None,
    *,
    data_root: str | None = None,
    threshold: float = MEMORISATION_THRESHOLD,
    false_discovery_rate: float = 0.05,
    precision: float = 0.8,
    duplicates_above: float = 0.98,
) -> Analysis:
    """Analyse the runs of a sweep over subsets.

    Args:
        runs: finished runs, see `choose_runs`.
        ordinary: run whose training dynamics are compared with the memorisation scores; None for no comparison.
        data_root: folder of the data set, if it has moved since the runs were trained.
        threshold: score from which an image counts as memorised, and its influence is tested.
        false_discovery_rate: upper bound of the expected fraction of false discoveries among the influences.
        precision: smallest expected precision of the list of label errors.
        duplicates_above: smallest Pearson correlation of the pixels of near-duplicates.

    Returns:
        The results, for `write_report`.

    Raises:
        UserError: if files are missing or damaged, or belong to another data set.
    """
    data = load_data(runs[0], data_root)
    ensemble = read_ensemble(runs, data.class_names)
    _check_targets(ensemble, data)
    train = data.train_split.images_at(torch.from_numpy(ensemble.indices.astype(np.int64)))
    test = None
    if data.has_test:
        data.setup("test")
        test = data.test_split.images
        ensemble = _with_test_targets(ensemble, data)
    scores = compute_scores(ensemble, threshold=threshold, false_discovery_rate=false_discovery_rate)
    errors = find_label_errors(ensemble.out_of_sample, ensemble.targets, precision=precision)
    decomposition = noise = None
    if ensemble.test_totals is not None:
        decomposition = metrics.decompose(ensemble.test_totals, ensemble.test_targets)
        # The temperature was fitted to training images.
        noise = 1 - metrics.calibrate(ensemble.test_totals.mean, errors.temperature).max(axis=1)
    proxies: Iterable[Proxy] = ()
    if ordinary is not None:
        if scores is None:
            raise UserError("run= compares with memorisation scores, which these runs do not give: leave it out.")
        proxies = compare_proxies(ordinary, data, ensemble, scores.score)
    return Analysis(
        ensemble=ensemble,
        scores=scores,
        errors=errors,
        decomposition=decomposition,
        noise=noise,
        duplicates=None if test is None else find_duplicates(train, test, above=duplicates_above),
        proxies=tuple(proxies),
        ordinary=ordinary,
        train=train,
        test=test,
        threshold=threshold,
        false_discovery_rate=false_discovery_rate,
    )


def _with_test_targets(ensemble: SubsetEnsemble, data: ImageDataModule) -> SubsetEnsemble:
    """Fill in labels and positions of the test images, if the runs store none; check their number otherwise."""
    split = data.test_split
    if ensemble.test_totals is None:
        return replace(ensemble, test_targets=split.targets.numpy(), test_indices=split.indices.numpy())
    if len(split.images) != len(ensemble.test_targets):
        raise UserError(
            f"{ensemble.runs[0].path} has predictions of other test images: give its data set with data.root=DIR."
        )
    return ensemble


def _check_targets(ensemble: SubsetEnsemble, data: ImageDataModule) -> None:
    """Raise UserError unless the labels that the networks were trained with are those of the data set."""
    indices = ensemble.indices
    is_same = len(data.training_targets) > indices.max() and np.array_equal(
        # The validation images of each fold keep the labels of the data set.
        data.training_targets[torch.from_numpy(indices.astype(np.int64))].numpy(),
        ensemble.targets,
    )
    if not is_same and not data.corrections.get("relabel"):
        raise UserError(
            f"{ensemble.runs[0].path} has other labels than the data set: give its data set with data.root=DIR."
        )


def write_report(analysis: Analysis, folder: Path, notes: Sequence[str] = ()) -> str:
    """Write tables, figures, `report.md`, `summary.json` and TensorBoard events, and replace earlier ones.

    Args:
        analysis: results of `analyse`.
        folder: the output directory.
        notes: sentences on the limits of the analysis, for `report.md`.

    Returns:
        The summary in a few sentences.

    Raises:
        UserError: if the folder cannot be written.
    """
    figures = _draw_figures(analysis)
    summary = " ".join(_sentences(analysis))
    try:
        plots_folder = folder / "figures"
        plots_folder.mkdir(parents=True, exist_ok=True)
        for name in _CAPTIONS:
            (plots_folder / f"{name}.png").unlink(missing_ok=True)
        for name, figure in figures.items():
            save_figure(figure, plots_folder / f"{name}.png")
        _write_table(folder / "memorisation.csv.gz", _image_rows(analysis))
        _write_table(folder / "test_images.csv.gz", _test_rows(analysis))
        _write_table(folder / "influence.csv.gz", _influence_rows(analysis))
        write_atomically(folder / "label_errors.csv", format_csv(_label_error_rows(analysis)))
        write_atomically(folder / "near_duplicates.csv", format_csv(_duplicate_rows(analysis)))
        (folder / "scores.npz").unlink(missing_ok=True)
        if analysis.scores is not None:
            recipe = training_command(analysis.ensemble.runs[0].config())
            write_scores(folder / "scores.npz", analysis.ensemble, analysis.scores, recipe)
        write_json(folder / "summary.json", summary_numbers(analysis))
        text = _markdown(analysis, summary, list(figures), notes)
        write_atomically(folder / "report.md", text)
        _write_tensorboard(analysis, folder, list(figures), text)
    except OSError as error:
        raise unusable(error, folder, "choose another out=DIR") from error
    return summary


def _draw_figures(analysis: Analysis) -> dict[str, Figure]:
    ensemble, scores, train, test = analysis.ensemble, analysis.scores, analysis.train, analysis.test
    drawn: dict[str, Figure | None] = {}
    if scores is not None:
        drawn["scores"] = plots.plot_scores(scores, threshold=analysis.threshold)
        drawn["gap_by_class"] = plots.plot_class_shares(scores, ensemble.class_names)
        drawn["memorised"] = plots.plot_memorised(ensemble, scores, train)
        drawn["influence"] = None if test is None else plots.plot_influences(ensemble, scores, train, test)
    drawn["label_errors"] = plots.plot_label_errors(ensemble, analysis.errors, train)
    if test is not None and analysis.decomposition is not None:
        drawn["test_images"] = plots.plot_test_images(ensemble, analysis.decomposition, test)
    if test is not None and analysis.duplicates is not None:
        drawn["duplicates"] = plots.plot_duplicates(ensemble, analysis.duplicates, train, test)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _write_table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    # mtime=0 makes files of equal tables identical.
    write_atomically(path, gzip.compress(format_csv(rows).encode(), mtime=0))


def _cell(value: float, digits: int = 4) -> float | str:
    """Rounded number; empty if it is not finite."""
    return round(float(value), digits) if math.isfinite(value) else ""


def _image_rows(analysis: Analysis) -> Iterable[list[Any]]:
    """Rows of memorisation.csv.gz: the training images, most memorised first."""
    ensemble, scores, errors = analysis.ensemble, analysis.scores, analysis.errors
    counts, names = ensemble.counts, ensemble.class_names
    train_accuracy, held_out_accuracy = counts.train_accuracy, counts.held_out_accuracy
    mean, agreement = ensemble.out_of_sample, ensemble.held_out.agreement
    predicted = mean.argmax(axis=1)
    ranking = np.zeros(len(ensemble.indices)) if scores is None else np.nan_to_num(scores.score, nan=-2)
    positive = np.zeros(len(ensemble.indices), dtype=np.int64)
    if scores is not None and (influences := scores.influences) is not None:
        helpful = influences.train_rows[influences.values > 0]
        positive[scores.tested] = np.bincount(helpful, minlength=len(scores.tested))
    listed = np.zeros(len(ensemble.indices), dtype=bool)
    listed[errors.listed] = True
    yield [
        *("index", "label", "memorisation", "standard_error", "train_accuracy", "held_out_accuracy"),
        *("networks_trained", "networks_held_out", "prediction", "agreement", "positive_influences"),
        *("label_error_probability", "listed", "confident_learning_issue"),
        *(f"p_{name}" for name in names),
    ]
    for row in np.argsort(-ranking, kind="stable"):
        yield [
            int(ensemble.indices[row]),
            names[ensemble.targets[row]],
            "" if scores is None else _cell(scores.score[row]),
            "" if scores is None else _cell(scores.standard_error[row]),
            _cell(train_accuracy[row]),
            _cell(held_out_accuracy[row]),
            int(counts.trained[row]),
            int(counts.held_out[row]),
            names[predicted[row]],
            _cell(agreement[row]),
            int(positive[row]),
            _cell(errors.probability[row]),
            int(listed[row]),
            "" if errors.issues is None else int(errors.issues[row]),
            *(_cell(value) for value in mean[row]),
        ]


def _test_rows(analysis: Analysis) -> Iterable[list[Any]]:
    """Rows of test_images.csv.gz: the test images, highest error first."""
    yield [
        *("index", "label", "main_prediction", "error", "bias", "variance"),
        *("loss", "loss_bias", "loss_variance", "noise", "agreement"),
    ]
    ensemble, parts = analysis.ensemble, analysis.decomposition
    if parts is None or ensemble.test_totals is None or analysis.noise is None:
        return
    main, agreement = ensemble.test_totals.votes.argmax(axis=1), ensemble.test_totals.agreement
    for row in np.argsort(-parts.error, kind="stable"):
        values = (parts.loss, parts.loss_bias, parts.loss_variance, analysis.noise, agreement)
        yield [
            int(ensemble.test_indices[row]),
            ensemble.class_names[ensemble.test_targets[row]],
            ensemble.class_names[main[row]],
            _cell(parts.error[row]),
            int(parts.bias[row]),
            _cell(parts.variance[row]),
            *(_cell(value[row]) for value in values),
        ]


def _influence_rows(analysis: Analysis) -> Iterable[list[Any]]:
    """Rows of influence.csv.gz: the significant influences, largest first."""
    yield ["train_index", "train_label", "memorisation", "test_index", "test_label", "influence", "p_value"]
    ensemble, scores = analysis.ensemble, analysis.scores
    if scores is None or (influences := scores.influences) is None:
        return
    for row, test, value, p_value in zip(
        influences.train_rows, influences.test_rows, influences.values, influences.p_values, strict=True
    ):
        image = scores.tested[row]
        yield [
            int(ensemble.indices[image]),
            ensemble.class_names[ensemble.targets[image]],
            _cell(scores.score[image]),
            int(ensemble.test_indices[test]),
            ensemble.class_names[ensemble.test_targets[test]],
            _cell(value),
            f"{p_value:.3g}",
        ]


def _label_error_rows(analysis: Analysis) -> Iterable[list[Any]]:
    """Rows of label_errors.csv, a file for `data.exclude` and `data.relabel`: `label` is the proposed class."""
    ensemble, errors = analysis.ensemble, analysis.errors
    yield ["index", "label", "given_label", "probability"]
    for row in errors.listed:
        names = ensemble.class_names
        given, proposed = names[ensemble.targets[row]], names[errors.proposed[row]]
        yield [int(ensemble.indices[row]), proposed, given, _cell(errors.probability[row])]


def _duplicate_rows(analysis: Analysis) -> Iterable[list[Any]]:
    """Rows of near_duplicates.csv: the near-duplicates across the splits, most similar first."""
    ensemble, duplicates = analysis.ensemble, analysis.duplicates
    yield ["test_index", "test_label", "train_index", "train_label", "similarity", "equal"]
    if duplicates is None:
        return
    for test, row, similarity, equal in zip(
        duplicates.test_rows, duplicates.train_rows, duplicates.similarity, duplicates.equal, strict=True
    ):
        yield [
            int(ensemble.test_indices[test]),
            ensemble.class_names[ensemble.test_targets[test]],
            int(ensemble.indices[row]),
            ensemble.class_names[ensemble.targets[row]],
            _cell(similarity, 5),
            int(equal),
        ]


def summary_numbers(analysis: Analysis) -> dict[str, Any]:
    """Return the metrics of the report, the content of `summary.json`.

    Accuracies, gaps, scores and rates are fractions; an unknown value is None or NaN.
    """
    ensemble, scores, errors = analysis.ensemble, analysis.scores, analysis.errors
    numbers: dict[str, Any] = {
        "networks": len(ensemble.runs),
        "pairs": len(ensemble.pairs),
        "images": len(ensemble.indices),
        "held_out_accuracy": ensemble.held_out_accuracy,
        "temperature": errors.temperature,
        "label_errors": len(errors.listed),
        "expected_precision": errors.precision,
        "label_issues_of_confident_learning": None if errors.issues is None else int(errors.issues.sum()),
        "noise_matrix": errors.noise.round(5).tolist(),
        "confident_noise_matrix": None if errors.confident_noise is None else errors.confident_noise.round(5).tolist(),
    }
    if scores is not None:
        influences, errors_of_scores = scores.influences, scores.standard_error
        numbers |= {
            "train_accuracy": ensemble.train_accuracy,
            "gap": scores.gap,
            "mean_standard_error": float(np.nanmean(errors_of_scores)) if _any_finite(errors_of_scores) else None,
            "max_standard_error": float(np.nanmax(errors_of_scores)) if _any_finite(errors_of_scores) else None,
            "reliability": scores.reliability[0],
            f"reliability_above_{RELIABILITY_THRESHOLD}": scores.reliability[1],
            "memorised_images": len(scores.tested),
            "gap_shares": dict(zip(map(str, TOP_FRACTIONS), scores.gap_shares, strict=False)),
            "class_shares": dict(zip(ensemble.class_names, scores.class_shares.tolist(), strict=True)),
            "additivity": [
                {**vars(check), "deviation": check.deviation, "class": name} for name, check in scores.checks
            ],
            "influences": None if influences is None else len(influences.train_rows),
            "influences_tested": None if influences is None else influences.tested,
            "influences_null_discoveries": None if influences is None else influences.null_discoveries,
            "influence_p_value": None if influences is None else influences.threshold,
        }
    if analysis.decomposition is not None and analysis.noise is not None:
        numbers |= {f"test_{name}": float(np.mean(value)) for name, value in vars(analysis.decomposition).items()}
        numbers["test_noise"] = float(analysis.noise.mean())
    if analysis.duplicates is not None:
        numbers["near_duplicates"] = len(analysis.duplicates.test_rows)
        numbers["equal_images"] = int(analysis.duplicates.equal.sum())
    numbers["proxies"] = {proxy.name: proxy.correlation for proxy in analysis.proxies}
    return numbers


def _any_finite(values: Floats) -> bool:
    return bool(np.isfinite(values).any())


def _sentences(analysis: Analysis) -> list[str]:
    """Sentences of the summary."""
    ensemble, scores, errors = analysis.ensemble, analysis.scores, analysis.errors
    networks = f"{len(ensemble.runs)} networks, {len(ensemble.indices):,} training images."
    if scores is None:
        sentences = [
            networks,
            f"The accuracy on held-out images is {ensemble.held_out_accuracy:.2%}. The runs store no predictions of "
            "their training images, so there are no memorisation scores (train with sweep=memorisation, or "
            "keep=logits).",
        ]
    else:
        sentences = [
            networks,
            f"The accuracy is {ensemble.train_accuracy:.2%} on training images and {ensemble.held_out_accuracy:.2%} on "
            f"held-out images. The mean memorisation score, which is the expected gap, is {scores.gap * 100:.2f} "
            "points.",
        ]
        if _any_finite(scores.standard_error):
            sentences.append(
                f"The standard error of a score is {np.nanmean(scores.standard_error):.3f} on average, "
                f"{np.nanmax(scores.standard_error):.3f} at most."
            )
        sentences.append(f"{len(scores.tested):,} images are memorised (score of {analysis.threshold:g} or more).")
        if scores.gap_shares:
            share = scores.gap_shares[TOP_FRACTIONS.index(0.01)]
            sentences.append(f"The 1% most memorised images account for {share:.0%} of the gap.")
        if (influences := scores.influences) is not None:
            sentences.append(
                f"{len(influences.train_rows):,} of {influences.tested:,} influences are significant at a false "
                f"discovery rate of {analysis.false_discovery_rate:g}; with random membership, "
                f"{influences.null_discoveries:,} are."
            )
        else:
            sentences.append("Influences are not tested: that needs pairs of complementary halves.")
    sentences.append(
        f"{len(errors.listed):,} likely label errors are listed; the expected precision is at least "
        f"{errors.precision:.0%}."
        if len(errors.listed)
        else f"No list of label errors has an expected precision of {errors.precision:.0%}."
    )
    if errors.issues is not None:
        sentences.append(f"Confident learning finds {int(errors.issues.sum()):,} label issues.")
    return sentences


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]], right: int = 1) -> str:
    """Format a Markdown table; columns from `right` on are aligned to the right."""
    marks = ["---"] * right + ["---:"] * (len(headings) - right)
    lines = [headings, marks, *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float, digits: int = 2, scale: float = 1) -> str:
    return f"{value * scale:+.{digits}f}" if math.isfinite(value) else "-"


def _markdown(analysis: Analysis, summary: str, figures: Sequence[str], notes: Sequence[str]) -> str:
    """Content of `report.md`."""
    runs = analysis.ensemble.runs
    pictures = {name: f"![{_CAPTIONS[name]}](figures/{name}.png)" for name in figures}
    paragraphs = ["# Memorisation of the training images", summary, *notes]
    paragraphs.append(f"The first of the {len(runs)} trainings:\n\n```sh\n{training_command(runs[0].config())}\n```")
    if analysis.scores is not None:
        paragraphs += _gap_section(analysis.ensemble, analysis.scores, pictures)
        paragraphs += ["## Memorised images", pictures.get("memorised", "")]
        paragraphs.append("`memorisation.csv.gz` has all training images, the most memorised first.")
        if analysis.scores.influences is not None:
            paragraphs += _influence_section(analysis, analysis.scores.influences, pictures)
    paragraphs += _label_error_section(analysis, pictures)
    if analysis.decomposition is not None and analysis.noise is not None:
        paragraphs += _test_section(analysis, analysis.decomposition, analysis.noise, pictures)
    if analysis.duplicates is not None:
        paragraphs += _duplicate_section(analysis.duplicates, pictures)
    if analysis.proxies and analysis.ordinary is not None:
        paragraphs += _proxy_section(analysis.proxies, analysis.ordinary)
    paragraphs.append(
        "The test images serve to describe the networks only. Choose hyperparameters, exclusions and new labels by "
        "training images."
    )
    return "\n\n".join(part for part in paragraphs if part) + "\n"


def _gap_section(ensemble: SubsetEnsemble, scores: Scores, pictures: dict[str, str]) -> list[str]:
    overall, above = scores.reliability
    paragraphs = [
        "## Share of the gap",
        pictures.get("scores", ""),
        f"Split-half reliability, the correlation of the scores of two halves of the runs: {_number(overall)} over all "
        f"images, {_number(above)} over images with a score above {RELIABILITY_THRESHOLD}.",
    ]
    if scores.gap_shares:
        rows = [(f"{top:.1%}", f"{share:.1%}") for top, share in zip(TOP_FRACTIONS, scores.gap_shares, strict=True)]
        paragraphs.append(_table(["most memorised images", "share of the gap"], rows))
        paragraphs.append(
            "The images are ranked by the scores of one half of the runs; their share is computed from the scores of "
            "the other half."
        )
    paragraphs.append(pictures.get("gap_by_class", ""))
    if scores.checks:
        quantile = t_quantile(max(1, sum(map(len, ensemble.gaps)) - 2))
        paragraphs.append(
            "Additivity: the scores of one half of the runs predict the gap of the other half. If the scores are "
            f"additive, 95% of the differences are within ±{quantile:.1f} standard errors."
        )
        headings = ["images", "predicted gap, points", "measured gap, points", "difference in standard errors"]
        check_rows = [
            (name, _number(c.predicted, scale=100), _number(c.measured, scale=100), _number(c.deviation, 1))
            for name, c in scores.checks
        ]
        paragraphs.append(_table(headings, check_rows))
    return paragraphs


def _influence_section(analysis: Analysis, influences: metrics.Influences, pictures: dict[str, str]) -> list[str]:
    significant = len(influences.train_rows)
    level = f" (p up to {influences.threshold:.2g})" if significant else ""
    return [
        "## Influence on test images",
        f"{influences.tested:,} pairs of a memorised training image and a test image are tested by the exact sign test "
        f"over {len(analysis.ensemble.pairs)} pairs of networks. At a false discovery rate of "
        f"{analysis.false_discovery_rate:g} (Benjamini and Hochberg), {significant:,} influences are "
        f"significant{level}; with random membership, {influences.null_discoveries:,} are. `influence.csv.gz` lists "
        "them.",
        pictures.get("influence", ""),
    ]


def _label_error_section(analysis: Analysis, pictures: dict[str, str]) -> list[str]:
    errors, names = analysis.errors, analysis.ensemble.class_names
    paragraphs = [
        "## Label errors",
        "The probability of a label error follows from the mean out-of-sample probabilities, calibrated with "
        f"temperature {errors.temperature:.2f} and by isotonic regression, and the noise matrix of the {len(names)} "
        "classes. `label_errors.csv` is the longest list with an expected precision, which is its mean probability, of "
        f"at least {errors.precision:.0%}: {len(errors.listed):,} images. The unlikely label of an ambiguous image "
        "counts as ambiguity, not as an error.",
        _noise_table("Label noise by anchor images", errors.noise, names),
    ]
    if errors.confident_noise is not None and errors.issues is not None:
        paragraphs.append(
            f"Confident learning (cleanlab) finds {int(errors.issues.sum()):,} label issues, which include ambiguous "
            f"images; {int(errors.issues[errors.listed].sum()):,} of them are in the list."
        )
        paragraphs.append(_noise_table("Label noise by confident learning", errors.confident_noise, names))
    return [*paragraphs, pictures.get("label_errors", "")]


def _duplicate_section(duplicates: Duplicates, pictures: dict[str, str]) -> list[str]:
    return [
        "## Near-duplicates across the splits",
        f"{len(duplicates.test_rows):,} test images are near-duplicates of a training image, by the correlation of the "
        f"pixels; {int(duplicates.equal.sum()):,} of them are identical to one. `near_duplicates.csv` lists them.",
        pictures.get("duplicates", ""),
    ]


def _proxy_section(proxies: Sequence[Proxy], ordinary: Run) -> list[str]:
    rows = [(proxy.name, _number(proxy.correlation), f"{proxy.images:,}") for proxy in proxies]
    return [
        "## Proxies from a single run",
        f"Spearman's rank correlation of the memorisation score with metrics of {ordinary.path}:",
        _table(["metric", "correlation", "images"], rows),
    ]


def _noise_table(title: str, noise: Floats, class_names: Sequence[str]) -> str:
    """Format the largest off-diagonal entries of a noise matrix as a table."""
    off = noise - np.diag(np.diag(noise))
    order = np.argsort(-off, axis=None, kind="stable")[:10]
    rows = [
        (class_names[true], class_names[given], f"{off[true, given]:.2%}")
        for true, given in zip(*np.unravel_index(order, off.shape), strict=True)
        if off[true, given] > 0
    ]
    if not rows:
        return f"{title}: none."
    return f"{title}, largest entries:\n\n" + _table(["true class", "given label", "probability"], rows, right=2)


def _test_section(analysis: Analysis, parts: Decomposition, noise: Floats, pictures: dict[str, str]) -> list[str]:
    targets = analysis.ensemble.test_targets
    rows = []
    for name, mask in (
        ("all", np.ones(len(targets), dtype=bool)),
        *((name, targets == label) for label, name in enumerate(analysis.ensemble.class_names)),
    ):
        if mask.any():
            means = [values[mask].mean() for values in (parts.error, parts.bias, parts.variance, noise)]
            losses = [values[mask].mean() for values in (parts.loss, parts.loss_bias, parts.loss_variance)]
            rows.append((name, *(f"{value:.2%}" for value in means), *(f"{value:.4f}" for value in losses)))
    return [
        "## Test images: bias, variance and noise",
        "Error: mean error rate of a single network. Bias: fraction of the images whose main prediction, the most "
        "frequent one, is wrong. Variance: probability that a network deviates from the main prediction (Domingos, "
        "2000); on images with bias, a deviation may be correct. The cross-entropy (loss) is the sum of its bias and "
        "its variance (Heskes, 1998). With one label for each image, the bias includes the label noise, which is "
        "estimated as 1 minus the highest mean probability, calibrated on training images.",
        _table(["images", "error", "bias", "variance", "noise", "loss", "loss: bias", "loss: variance"], rows),
        pictures.get("test_images", ""),
    ]


def _write_tensorboard(analysis: Analysis, folder: Path, figures: Sequence[str], text: str) -> None:
    writer = TensorBoardWriter(folder)
    for name in figures:
        writer.add_image(f"memorisation/{name}", folder / "figures" / f"{name}.png", 0)
    # TensorBoard's text plugin shows no image files, and a long line of code widens its page.
    paragraphs = (part for part in text.split("\n\n") if not part.startswith(("![", "```", "The first of")))
    writer.add_text("memorisation", "\n\n".join(paragraphs), 0)
    writer.add_text("memorised_images", _example_table(analysis), 0)
    writer.close()
    _write_projector(analysis, folder)


def _example_table(analysis: Analysis) -> str:
    """Markdown table of the most memorised images, or of the most likely label errors without scores."""
    ensemble, scores, errors = analysis.ensemble, analysis.scores, analysis.errors
    ranking = errors.probability if scores is None else np.nan_to_num(scores.score, nan=-1)
    predicted = ensemble.out_of_sample.argmax(axis=1)
    rows = []
    for row in np.argsort(-ranking, kind="stable")[:_TABLE_ROWS]:
        score = "-"
        if scores is not None and math.isfinite(scores.score[row]):
            error = scores.standard_error[row]
            score = f"{scores.score[row]:.2f}" + (f" ± {error:.2f}" if math.isfinite(error) else "")
        names = ensemble.class_names
        probability = f"{errors.probability[row]:.0%}"
        rows.append((ensemble.indices[row], names[ensemble.targets[row]], score, names[predicted[row]], probability))
    headings = ["training image", "label", "memorisation", "out-of-sample prediction", "label error"]
    return _table(headings, rows, right=2)


def _write_projector(analysis: Analysis, folder: Path) -> None:
    """Write log probabilities (out of sample) of the most memorised and of random images for the projector."""
    ensemble, scores = analysis.ensemble, analysis.scores
    ranking = analysis.errors.probability if scores is None else np.nan_to_num(scores.score, nan=-1)
    half = _PROJECTED // 2
    top = np.argsort(-ranking, kind="stable")[:half]
    rest = np.setdiff1d(np.arange(len(ranking)), top)
    sample = np.random.default_rng(0).choice(rest, min(half, len(rest)), replace=False)
    rows = np.concatenate([top, np.sort(sample)])
    embeddings = np.log(np.maximum(ensemble.out_of_sample[rows], 1e-6))
    names = ensemble.class_names
    columns: dict[str, list[str | float]] = {
        "label": [names[ensemble.targets[row]] for row in rows],
        "prediction": [names[label] for label in ensemble.out_of_sample[rows].argmax(axis=1)],
        "label error": [round(float(value), 3) for value in analysis.errors.probability[rows]],
        "index": [int(value) for value in ensemble.indices[rows]],
    }
    if scores is not None:
        columns = {"memorisation": [round(float(value), 3) for value in ranking[rows]], **columns}
    write_projector(
        folder, torch.from_numpy(embeddings), analysis.train[torch.from_numpy(rows)], columns, name="training images"
    )
