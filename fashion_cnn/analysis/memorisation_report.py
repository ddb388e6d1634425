"""Report on memorisation: tables, figures, `report.md` and TensorBoard, from the answers of a sweep over subsets."""

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
    MEMORISED,
    RELIABLE_ABOVE,
    SHARES,
    Answers,
    Duplicates,
    LabelErrors,
    Proxy,
    Scores,
    compare_proxies,
    compute_scores,
    find_duplicates,
    find_label_errors,
    read_answers,
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
    "scores": "Histogram of the memorisation scores, and the part of the gap that the most memorised images carry.",
    "gap_by_class": "Share of the gap by class.",
    "memorised": "The most memorised training images: label, score, and the class that other networks predict.",
    "bought": "Memorised training images beside the test images that each one buys.",
    "label_errors": "Likely label errors with the class proposed.",
    "test_images": "Test images of highest variance, and those of bias with the lowest variance.",
    "duplicates": "Near-duplicates across the splits.",
}
# Number of images of the projector, the most memorised and a random sample.
_PROJECTED = 2000
_TABLE_ROWS = 20


@dataclass(frozen=True)
class Analysis:
    """Everything that is computed from the runs.

    Attributes:
        answers: of the networks.
        scores: memorisation and influence; None if the runs give none.
        errors: likely label errors.
        parts: bias and variance of the test images; None without answers to them.
        noise: `(M,)`, estimated noise of the test images, 1 minus the highest calibrated mean probability.
        duplicates: near-duplicates; None without test images.
        proxies: measurements of an ordinary run.
        ordinary: that run.
        train: `(N, C, H, W)` uint8.
        test: `(M, C, H, W)` uint8; None without test images.
        memorised: score from which an image counts as memorised.
        false_discovery_rate: of the influences.
    """

    answers: Answers
    scores: Scores | None
    errors: LabelErrors
    parts: Decomposition | None
    noise: Floats | None
    duplicates: Duplicates | None
    proxies: tuple[Proxy, ...]
    ordinary: Run | None
    train: Tensor
    test: Tensor | None
    memorised: float
    false_discovery_rate: float


def analyse(
    runs: Sequence[Run],
    ordinary: Run | None = None,
    *,
    data_root: str | None = None,
    memorised: float = MEMORISED,
    false_discovery_rate: float = 0.05,
    precision: float = 0.8,
    duplicates_above: float = 0.98,
) -> Analysis:
    """Analyse the runs of a sweep over subsets.

    Args:
        runs: finished runs, see `choose_runs`.
        ordinary: run whose measurements are compared with memorisation.
        data_root: folder of the data set, if it is no longer where the runs found it.
        memorised: score from which the influence of an image is tested.
        false_discovery_rate: of the influences.
        precision: expected precision of the list of label errors.
        duplicates_above: smallest correlation of the pixels of near-duplicates.

    Raises:
        UserError: if files are missing or damaged, or belong to other images.
    """
    data = load_data(runs[0], data_root)
    answers = read_answers(runs, data.class_names)
    indices = torch.from_numpy(answers.indices.astype(np.int64))
    _check_targets(answers, data)
    train = data.train_split.images_at(indices)
    test = None
    if data.has_test:
        data.setup("test")
        test = data.test_split.images
        if answers.tests is None:
            split = data.test_split
            answers = replace(answers, test_targets=split.targets.numpy(), test_indices=split.indices.numpy())
        elif len(test) != len(answers.test_targets):
            raise UserError(f"{runs[0].path} has answers to other test images: give its data set with data.root=DIR.")
    scores = compute_scores(answers, memorised=memorised, false_discovery_rate=false_discovery_rate)
    errors = find_label_errors(answers.out_of_sample, answers.targets, precision=precision)
    parts = noise = None
    if answers.tests is not None:
        parts = metrics.decompose(answers.tests, answers.test_targets)
        # The temperature is fitted to training images.
        noise = 1 - metrics.calibrate(answers.tests.mean, errors.temperature).max(axis=1)
    proxies: Iterable[Proxy] = ()
    if ordinary is not None:
        if scores is None:
            raise UserError("run= compares with memorisation scores, which these runs do not give: leave it out.")
        proxies = compare_proxies(ordinary, data, answers, scores.score)
    return Analysis(
        answers=answers,
        scores=scores,
        errors=errors,
        parts=parts,
        noise=noise,
        duplicates=None if test is None else find_duplicates(train, test, above=duplicates_above),
        proxies=tuple(proxies),
        ordinary=ordinary,
        train=train,
        test=test,
        memorised=memorised,
        false_discovery_rate=false_discovery_rate,
    )


def _check_targets(answers: Answers, data: ImageDataModule) -> None:
    """Raise UserError unless the labels that the networks were trained with are those of the data set."""
    indices = answers.indices
    is_same = len(data.training_targets) > indices.max() and np.array_equal(
        # Validation images keep the labels of the data set, in whichever fold they are.
        data.training_targets[torch.from_numpy(indices.astype(np.int64))].numpy(),
        answers.targets,
    )
    if not is_same and not data.corrections.get("relabel"):
        raise UserError(
            f"{answers.runs[0].path} has other labels than the data set: give its data set with data.root=DIR."
        )


def write_report(analysis: Analysis, folder: Path, notes: Sequence[str] = ()) -> str:
    """Write tables, figures, `report.md`, `summary.json` and TensorBoard events, in place of earlier ones.

    Args:
        analysis: what to write.
        folder: the output directory.
        notes: sentences on what limits the analysis.

    Returns:
        The summary in a few sentences.

    Raises:
        UserError: if the folder cannot be written.
    """
    figures = _figures(analysis)
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
            recipe = training_command(analysis.answers.runs[0].config())
            write_scores(folder / "scores.npz", analysis.answers, analysis.scores, recipe)
        write_json(folder / "summary.json", summary_numbers(analysis))
        text = _markdown(analysis, summary, list(figures), notes)
        write_atomically(folder / "report.md", text)
        _write_tensorboard(analysis, folder, list(figures), text)
    except OSError as error:
        raise unusable(error, folder, "choose another out=DIR") from error
    return summary


def _figures(analysis: Analysis) -> dict[str, Figure]:
    answers, scores, train, test = analysis.answers, analysis.scores, analysis.train, analysis.test
    drawn: dict[str, Figure | None] = {}
    if scores is not None:
        drawn["scores"] = plots.plot_scores(scores, memorised=analysis.memorised)
        drawn["gap_by_class"] = plots.plot_class_shares(scores, answers.class_names)
        drawn["memorised"] = plots.plot_memorised(answers, scores, train)
        drawn["bought"] = None if test is None else plots.plot_bought_images(answers, scores, train, test)
    drawn["label_errors"] = plots.plot_label_errors(answers, analysis.errors, train)
    if test is not None and analysis.parts is not None:
        drawn["test_images"] = plots.plot_test_images(answers, analysis.parts, test)
    if test is not None and analysis.duplicates is not None:
        drawn["duplicates"] = plots.plot_duplicates(answers, analysis.duplicates, train, test)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _write_table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    # Without a time: equal tables are equal files.
    write_atomically(path, gzip.compress(format_csv(rows).encode(), mtime=0))


def _cell(value: float, digits: int = 4) -> float | str:
    """A rounded number; empty if it is not known."""
    return round(float(value), digits) if math.isfinite(value) else ""


def _image_rows(analysis: Analysis) -> Iterable[list[Any]]:
    """The table of the training images, most memorised first."""
    answers, scores, errors = analysis.answers, analysis.scores, analysis.errors
    total, names = answers.total, answers.class_names
    mean, agreement = answers.out_of_sample, answers.outside.agreement
    predicted = mean.argmax(axis=1)
    known = np.zeros(len(answers.indices)) if scores is None else np.nan_to_num(scores.score, nan=-2)
    bought = np.zeros(len(answers.indices), dtype=np.int64)
    if scores is not None and (found := scores.influences) is not None:
        helpful = found.rows[found.values > 0]
        bought[scores.tested] = np.bincount(helpful, minlength=len(scores.tested))
    listed = np.zeros(len(answers.indices), dtype=bool)
    listed[errors.listed] = True
    yield [
        *("index", "label", "memorisation", "standard_error", "accuracy_inside", "accuracy_outside"),
        *("networks_inside", "networks_outside", "prediction", "agreement", "tests_bought"),
        *("wrong_label", "proposed_label", "listed", "confident_learning_issue"),
        *(f"p_{name}" for name in names),
    ]
    for row in np.argsort(-known, kind="stable"):
        inside, outside = int(total.inside[row]), int(total.outside[row])
        yield [
            int(answers.indices[row]),
            names[answers.targets[row]],
            "" if scores is None else _cell(scores.score[row]),
            "" if scores is None else _cell(scores.standard_error[row]),
            _cell(total.inside_correct[row] / inside) if inside else "",
            _cell(total.outside_correct[row] / outside) if outside else "",
            inside,
            outside,
            names[predicted[row]],
            _cell(agreement[row]),
            int(bought[row]),
            _cell(errors.probability[row]),
            names[errors.proposed[row]],
            int(listed[row]),
            "" if errors.issues is None else int(errors.issues[row]),
            *(_cell(value) for value in mean[row]),
        ]


def _test_rows(analysis: Analysis) -> Iterable[list[Any]]:
    """The table of the test images, highest error first."""
    yield [
        *("index", "label", "main_prediction", "error", "bias", "variance"),
        *("loss", "loss_bias", "loss_variance", "noise", "agreement"),
    ]
    answers, parts = analysis.answers, analysis.parts
    if parts is None or answers.tests is None or analysis.noise is None:
        return
    main, agreement = answers.tests.votes.argmax(axis=1), answers.tests.agreement
    for row in np.argsort(-parts.error, kind="stable"):
        values = (parts.loss, parts.loss_bias, parts.loss_variance, analysis.noise, agreement)
        yield [
            int(answers.test_indices[row]),
            answers.class_names[answers.test_targets[row]],
            answers.class_names[main[row]],
            _cell(parts.error[row]),
            int(parts.bias[row]),
            _cell(parts.variance[row]),
            *(_cell(value[row]) for value in values),
        ]


def _influence_rows(analysis: Analysis) -> Iterable[list[Any]]:
    """The table of the significant influences, largest first."""
    yield ["train_index", "train_label", "memorisation", "test_index", "test_label", "influence", "p_value"]
    answers, scores = analysis.answers, analysis.scores
    if scores is None or (found := scores.influences) is None:
        return
    for row, test, value, p_value in zip(found.rows, found.tests, found.values, found.p_values, strict=True):
        image = scores.tested[row]
        yield [
            int(answers.indices[image]),
            answers.class_names[answers.targets[image]],
            _cell(scores.score[image]),
            int(answers.test_indices[test]),
            answers.class_names[answers.test_targets[test]],
            _cell(value),
            f"{p_value:.3g}",
        ]


def _label_error_rows(analysis: Analysis) -> Iterable[list[Any]]:
    """The list of likely label errors, which `data.exclude` and `data.relabel` read."""
    answers, errors = analysis.answers, analysis.errors
    yield ["index", "label", "given", "probability"]
    for row in errors.listed:
        names = answers.class_names
        given, proposed = names[answers.targets[row]], names[errors.proposed[row]]
        yield [int(answers.indices[row]), proposed, given, _cell(errors.probability[row])]


def _duplicate_rows(analysis: Analysis) -> Iterable[list[Any]]:
    answers, duplicates = analysis.answers, analysis.duplicates
    yield ["test_index", "test_label", "train_index", "train_label", "similarity", "equal"]
    if duplicates is None:
        return
    for test, row, similarity, equal in zip(
        duplicates.tests, duplicates.rows, duplicates.similarity, duplicates.equal, strict=True
    ):
        yield [
            int(answers.test_indices[test]),
            answers.class_names[answers.test_targets[test]],
            int(answers.indices[row]),
            answers.class_names[answers.targets[row]],
            _cell(similarity, 5),
            int(equal),
        ]


def summary_numbers(analysis: Analysis) -> dict[str, Any]:
    """The numbers of the report, for other programs; None or NaN where a number is not known."""
    answers, scores, errors = analysis.answers, analysis.scores, analysis.errors
    numbers: dict[str, Any] = {
        "networks": len(answers.runs),
        "pairs": len(answers.pairs),
        "images": len(answers.indices),
        "held_out_accuracy": answers.held_out_accuracy,
        "temperature": errors.temperature,
        "label_errors": len(errors.listed),
        "promised_precision": errors.precision,
        "label_issues_of_confident_learning": None if errors.issues is None else int(errors.issues.sum()),
        "noise_matrix": errors.noise.round(5).tolist(),
        "confident_noise_matrix": None if errors.confident_noise is None else errors.confident_noise.round(5).tolist(),
    }
    if scores is not None:
        found = scores.influences
        numbers |= {
            "train_accuracy": answers.train_accuracy,
            "gap": scores.gap,
            "mean_standard_error": float(np.nanmean(scores.standard_error)) if _any(scores.standard_error) else None,
            "max_standard_error": float(np.nanmax(scores.standard_error)) if _any(scores.standard_error) else None,
            "reliability": scores.reliability[0],
            f"reliability_above_{RELIABLE_ABOVE}": scores.reliability[1],
            "memorised_images": len(scores.tested),
            "gap_shares": dict(zip(map(str, SHARES), scores.shares, strict=False)),
            "class_shares": dict(zip(answers.class_names, scores.class_shares.tolist(), strict=True)),
            "additivity": [
                {**vars(check), "deviation": check.deviation, "class": name} for name, check in scores.checks
            ],
            "influences": None if found is None else len(found.rows),
            "influences_tested": None if found is None else found.tested,
            "influences_by_chance": None if found is None else found.chance,
            "influence_p_value": None if found is None else found.threshold,
        }
    if analysis.parts is not None and analysis.noise is not None:
        numbers |= {f"test_{name}": float(np.mean(value)) for name, value in vars(analysis.parts).items()}
        numbers["test_noise"] = float(analysis.noise.mean())
    if analysis.duplicates is not None:
        numbers["near_duplicates"] = len(analysis.duplicates.tests)
        numbers["equal_images"] = int(analysis.duplicates.equal.sum())
    numbers["proxies"] = {proxy.name: proxy.correlation for proxy in analysis.proxies}
    return numbers


def _any(values: Floats) -> bool:
    return bool(np.isfinite(values).any())


def _sentences(analysis: Analysis) -> list[str]:
    answers, scores, errors = analysis.answers, analysis.scores, analysis.errors
    networks = f"{len(answers.runs)} networks, {len(answers.indices):,} training images."
    if scores is None:
        sentences = [
            networks,
            f"Accuracy on images outside the training set {answers.held_out_accuracy:.2%}. These runs keep no answers "
            "to the images that they were trained on: there are no memorisation scores (train with sweep=memorisation, "
            "or keep=logits).",
        ]
    else:
        sentences = [
            networks,
            f"Accuracy {answers.train_accuracy:.2%} on images in the training set, {answers.held_out_accuracy:.2%} on "
            f"others: the mean memorisation, the expected gap, is {scores.gap * 100:.2f} points.",
        ]
        if _any(scores.standard_error):
            sentences.append(
                f"The standard error of a score is {np.nanmean(scores.standard_error):.3f} on average, "
                f"{np.nanmax(scores.standard_error):.3f} at most."
            )
        sentences.append(
            f"{len(scores.tested):,} images are memorised (score {analysis.memorised:g} or more)."
            + (f" The 1% most memorised carry {scores.shares[1]:.0%} of the gap." if scores.shares else "")
        )
        if (found := scores.influences) is not None:
            sentences.append(
                f"{len(found.rows):,} of {found.tested:,} influences are significant at a false discovery rate of "
                f"{analysis.false_discovery_rate:g}; {found.chance:,} would be with random membership."
            )
        else:
            sentences.append("Without pairs of complementary halves, no influence is tested.")
    sentences.append(
        f"{len(errors.listed):,} likely label errors are listed; {errors.precision:.0%} of them should be wrong."
        if len(errors.listed)
        else f"No list of label errors has an expected precision of {errors.precision:.0%}."
    )
    if errors.issues is not None:
        sentences.append(f"Confident learning finds {int(errors.issues.sum()):,} label issues.")
    return sentences


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]], right: int = 1) -> str:
    """Markdown table whose columns from `right` on are aligned to the right."""
    marks = ["---"] * right + ["---:"] * (len(headings) - right)
    lines = [headings, marks, *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float, digits: int = 2, scale: float = 1) -> str:
    return f"{value * scale:+.{digits}f}" if math.isfinite(value) else "-"


def _markdown(analysis: Analysis, summary: str, figures: Sequence[str], notes: Sequence[str]) -> str:
    answers, scores, errors = analysis.answers, analysis.scores, analysis.errors
    config = answers.runs[0].config()
    parts = ["# Memorisation of the training images", summary, *notes]
    parts.append(f"The first of the {len(answers.runs)} trainings:\n\n```sh\n{training_command(config)}\n```")
    pictures = {name: f"![{_CAPTIONS[name]}](figures/{name}.png)" for name in figures}
    if scores is not None:
        parts += _score_parts(analysis, scores, pictures)
    parts.append("## Label errors")
    parts.append(
        f"The mean probabilities of the networks that were not trained on an image, calibrated with temperature "
        f"{errors.temperature:.2f}, and the noise matrix of the {len(answers.class_names)} classes give the "
        "probability that its label is wrong. `label_errors.csv` is the longest list whose mean probability is at "
        f"least {errors.precision:.0%} (precision): {len(errors.listed):,} images. An image that looks like two "
        "classes is not called wrong for it."
    )
    parts.append(_noise_table("Label noise from images beyond doubt", errors.noise, answers.class_names))
    if errors.confident_noise is not None and errors.issues is not None:
        parts.append(
            f"Confident learning (cleanlab) finds {int(errors.issues.sum()):,} label issues, ambiguous images among "
            f"them; {int(errors.issues[errors.listed].sum()):,} of those listed are issues, too."
        )
        parts.append(_noise_table("Label noise by confident learning", errors.confident_noise, answers.class_names))
    parts.append(pictures.get("label_errors", ""))
    if analysis.parts is not None and analysis.noise is not None:
        parts += _test_parts(analysis, analysis.parts, analysis.noise, pictures)
    if analysis.duplicates is not None:
        duplicates = analysis.duplicates
        parts.append("## Near-duplicates across the splits")
        parts.append(
            f"{len(duplicates.tests):,} test images have a training image whose pixels correlate with theirs enough to "
            f"count; {int(duplicates.equal.sum()):,} are equal to one. `near_duplicates.csv` lists them."
        )
        parts.append(pictures.get("duplicates", ""))
    if analysis.proxies and analysis.ordinary is not None:
        parts.append("## The scores beside one run")
        parts.append(f"Spearman's rank correlation of memorisation with what {analysis.ordinary.path} measured:")
        parts.append(
            _table(
                ["measurement", "correlation", "images"],
                [(proxy.name, _number(proxy.correlation), f"{proxy.images:,}") for proxy in analysis.proxies],
            )
        )
    parts.append(
        "Test images are read to describe the networks. Recipes, exclusions and new labels are chosen from training "
        "images alone."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _score_parts(analysis: Analysis, scores: Scores, pictures: dict[str, str]) -> list[str]:
    answers = analysis.answers
    parts = ["## Who carries the gap", pictures.get("scores", "")]
    overall, above = scores.reliability
    parts.append(
        f"Correlation of the scores of two halves of the runs (split-half reliability): {_number(overall)} over all "
        f"images, {_number(above)} over those above {RELIABLE_ABOVE}."
    )
    if scores.shares:
        parts.append(
            _table(
                ["most memorised images", "share of the gap"],
                [(f"{share:.1%}", f"{part:.1%}") for share, part in zip(SHARES, scores.shares, strict=True)],
            )
        )
        parts.append("The images are ranked by one half of the runs and measured by the other.")
    parts.append(pictures.get("gap_by_class", ""))
    if scores.checks:
        quantile = t_quantile(max(1, sum(map(len, answers.gaps)) - 2))
        parts.append(
            "Additivity: the scores of one half of the runs predict the gap of the other half. By chance 95% of the "
            f"differences are within ±{quantile:.1f} standard errors."
        )
        parts.append(
            _table(
                ["images", "predicted, points", "measured, points", "difference in standard errors"],
                [
                    (name, _number(c.predicted, scale=100), _number(c.measured, scale=100), _number(c.deviation, 1))
                    for name, c in scores.checks
                ],
            )
        )
    parts += ["## Memorised images", pictures.get("memorised", "")]
    parts.append("`memorisation.csv.gz` has all training images, the most memorised first.")
    if (found := scores.influences) is not None:
        parts.append("## Test images that they buy")
        parts.append(
            f"{found.tested:,} pairs of a memorised training image and a test image are tested by the exact sign test "
            f"over {len(answers.pairs)} pairs of networks. At a false discovery rate of "
            f"{analysis.false_discovery_rate:g} (Benjamini and Hochberg), {len(found.rows):,} are significant "
            f"(p up to {found.threshold:.2g}); with membership drawn at random, {found.chance:,} would be. "
            "`influence.csv.gz` lists them."
        )
        parts.append(pictures.get("bought", ""))
    return parts


def _noise_table(title: str, noise: Floats, class_names: Sequence[str]) -> str:
    """Table of the largest entries off the diagonal of a noise matrix."""
    off = noise - np.diag(np.diag(noise))
    order = np.argsort(-off, axis=None, kind="stable")[:10]
    rows = [
        (class_names[true], class_names[given], f"{off[true, given]:.2%}")
        for true, given in zip(*np.unravel_index(order, off.shape), strict=True)
        if off[true, given] > 0
    ]
    if not rows:
        return f"{title}: none."
    return f"{title}, largest entries:\n\n" + _table(["true class", "label", "share"], rows, right=2)


def _test_parts(analysis: Analysis, parts: Decomposition, noise: Floats, pictures: dict[str, str]) -> list[str]:
    targets = analysis.answers.test_targets
    rows = []
    for name, mask in (
        ("all", np.ones(len(targets), dtype=bool)),
        *((name, targets == label) for label, name in enumerate(analysis.answers.class_names)),
    ):
        if mask.any():
            means = [values[mask].mean() for values in (parts.error, parts.bias, parts.variance, noise)]
            losses = [values[mask].mean() for values in (parts.loss, parts.loss_bias, parts.loss_variance)]
            rows.append((name, *(f"{value:.2%}" for value in means), *(f"{value:.4f}" for value in losses)))
    return [
        "## Test images: bias, variance and noise",
        "Error is that of a single network. Bias: the most frequent prediction is wrong. Variance: a network deviates "
        "from it (Domingos, 2000). Where there is bias, variance may also repair the error. The cross-entropy is the "
        "sum of its bias and its variance (Heskes, 1998). With one label an image, the bias includes the noise; its "
        "estimate is 1 minus the highest mean probability, calibrated on training images.",
        _table(["images", "error", "bias", "variance", "noise", "loss", "loss: bias", "loss: variance"], rows),
        pictures.get("test_images", ""),
    ]


def _write_tensorboard(analysis: Analysis, folder: Path, figures: Sequence[str], text: str) -> None:
    writer = TensorBoardWriter(folder)
    for name in figures:
        writer.add_image(f"memorisation/{name}", folder / "figures" / f"{name}.png", 0)
    # TensorBoard shows no pictures of the folder, and widens its page to the longest line of code.
    shown = (part for part in text.split("\n\n") if not part.startswith(("![", "```", "The first of")))
    writer.add_text("memorisation", "\n\n".join(shown), 0)
    writer.add_text("memorised_images", _example_table(analysis), 0)
    writer.close()
    _write_projector(analysis, folder)


def _example_table(analysis: Analysis) -> str:
    """The most memorised images, or else the most likely label errors, as a Markdown table."""
    answers, scores, errors = analysis.answers, analysis.scores, analysis.errors
    ranking = errors.probability if scores is None else np.nan_to_num(scores.score, nan=-1)
    predicted = answers.out_of_sample.argmax(axis=1)
    rows = []
    for row in np.argsort(-ranking, kind="stable")[:_TABLE_ROWS]:
        score = "-" if scores is None else f"{scores.score[row]:.2f} ± {_number(scores.standard_error[row])[1:]}"
        names = answers.class_names
        wrong = f"{errors.probability[row]:.0%}"
        rows.append((answers.indices[row], names[answers.targets[row]], score, names[predicted[row]], wrong))
    headings = ["training image", "label", "memorisation", "other networks predict", "wrong label"]
    return _table(headings, rows, right=2)


def _write_projector(analysis: Analysis, folder: Path) -> None:
    """Write the mean logarithms of the out-of-sample probabilities of the most memorised and of random images."""
    answers, scores = analysis.answers, analysis.scores
    ranking = analysis.errors.probability if scores is None else np.nan_to_num(scores.score, nan=-1)
    half = _PROJECTED // 2
    top = np.argsort(-ranking, kind="stable")[:half]
    rest = np.setdiff1d(np.arange(len(ranking)), top)
    sample = np.random.default_rng(0).choice(rest, min(half, len(rest)), replace=False)
    rows = np.concatenate([top, np.sort(sample)])
    embeddings = np.log(np.maximum(answers.out_of_sample[rows], 1e-6))
    names = answers.class_names
    columns: dict[str, list[str | float]] = {
        "label": [names[answers.targets[row]] for row in rows],
        "prediction": [names[label] for label in answers.out_of_sample[rows].argmax(axis=1)],
        "wrong label": [round(float(value), 3) for value in analysis.errors.probability[rows]],
        "index": [int(value) for value in answers.indices[rows]],
    }
    if scores is not None:
        columns = {"memorisation": [round(float(value), 3) for value in ranking[rows]], **columns}
    write_projector(
        folder, torch.from_numpy(embeddings), analysis.train[torch.from_numpy(rows)], columns, name="training images"
    )
