"""Accuracy under corruptions and the mean corruption error."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.corruptions import CORRUPTIONS, corrupt
from fashion_cnn.evaluation.robustness import (
    CorruptionErrors,
    Robustness,
    corruption_errors,
    evaluate_robustness,
    read_robustness,
)
from fashion_cnn.evaluation.robustness_report import plot_corruptions, plot_robustness
from fashion_cnn.inference.network import NetworkRunner
from fashion_cnn.models import ImageClassifier


@pytest.fixture
def images():
    return torch.randint(256, (70, 1, 10, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def by_brightness(images):
    """Logits of a network that predicts class 1 for images with a mean above 128."""
    excess = images.float().mean((1, 2, 3)) - 128
    return torch.stack([-excess, excess], dim=1)


def robustness(accuracy, **others):
    """A result on a hundred images, with the same accuracy at all severities."""
    strengths = {name: (1.0, 2.0, 3.0, 4.0, 5.0) for name in accuracy}
    values = {
        "clean": 0.9,
        "standard_error": 0.01,
        "images": 100,
        "data_sha256": "images",
        "seed": 0,
        "strengths": strengths,
    }
    return Robustness(accuracy={name: (value,) * 5 for name, value in accuracy.items()}, **values | others)


def test_each_accuracy_is_that_on_the_images_under_one_corruption(images):
    targets = (images.float().mean((1, 2, 3)) > 128).long()
    targets[:7] = 1 - targets[:7]
    result = evaluate_robustness(by_brightness, images, targets, seed=3)
    assert result.clean == pytest.approx(0.9)
    assert list(result.accuracy) == list(CORRUPTIONS)
    for name, row in result.accuracy.items():
        for severity, accuracy in enumerate(row, start=1):
            predicted = by_brightness(corrupt(images, name, severity, seed=3)).argmax(1)
            assert accuracy == pytest.approx((predicted == targets).double().mean().item())
    assert result.mean == pytest.approx(torch.tensor(list(result.accuracy.values())).mean().item())
    # Brighter images are of class 1.
    assert result.accuracy["brightness"][4] == pytest.approx(targets.double().mean().item())


def test_the_batch_size_does_not_change_the_result(images):
    targets = torch.zeros(70, dtype=torch.long)
    sizes = []

    class Brightness(nn.Module):
        def forward(self, batch):
            sizes.append(len(batch))
            return by_brightness(batch)

    module = ImageClassifier(network=Brightness(), image_shape=images.shape[1:], num_classes=2)
    sizes.clear()
    networks = [
        NetworkRunner(module, SimpleNamespace(normalise=torch.Tensor.float, eval_batch_size=size))
        for size in (7, 64, 1000)
    ]
    first, second, third = (
        evaluate_robustness(network.logits, images, targets, corruptions=["rotation", "shot_noise"])
        for network in networks
    )
    assert first == second == third
    assert set(sizes) == {7, 64, 6, 70}


def test_another_seed_gives_other_images(images):
    targets = torch.zeros(70, dtype=torch.long)
    first, second = (
        evaluate_robustness(by_brightness, images, targets, corruptions=["translation"], seed=seed) for seed in (0, 1)
    )
    assert first.accuracy != second.accuracy


def test_the_standard_error_of_the_mean_equals_its_spread_over_samples():
    generator = torch.Generator().manual_seed(0)
    population = torch.randint(256, (4000, 1, 4, 4), generator=generator, dtype=torch.uint8)
    targets = (population[:, 0, 0, 0] > 128).long()
    parts = [
        evaluate_robustness(by_brightness, images, labels, corruptions=["rotation", "contrast"])
        for images, labels in zip(population.split(100), targets.split(100), strict=True)
    ]
    spread = torch.tensor([part.mean for part in parts]).std().item()
    assert sum(part.standard_error for part in parts) / len(parts) == pytest.approx(spread, rel=0.3)


def test_progress_counts_every_pass(images):
    calls = []
    evaluate_robustness(
        by_brightness,
        images,
        torch.zeros(70, dtype=torch.long),
        corruptions=["scale", "contrast"],
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(done, 11) for done in range(1, 12)]


def test_corruption_errors_equal_a_hand_calculation():
    baseline = robustness({"rotation": 0.5, "contrast": 0.8})
    result = replace(
        robustness({"rotation": 0.5, "contrast": 0.8}),
        accuracy={"rotation": (0.9, 0.8, 0.7, 0.6, 0.5), "contrast": (0.8, 0.8, 0.8, 0.4, 0.2)},
    )
    errors = corruption_errors(result, baseline)
    # 0.1 + 0.2 + 0.3 + 0.4 + 0.5 = 1.5 of 2.5; 0.2 + 0.2 + 0.2 + 0.6 + 0.8 = 2.0 of 1.0.
    assert errors.by_corruption == pytest.approx({"rotation": 60, "contrast": 200})
    assert errors.mean == pytest.approx(130)
    assert corruption_errors(baseline, baseline).mean == pytest.approx(100)


@pytest.mark.parametrize(
    "baseline",
    [
        robustness({"rotation": 0.5}, seed=1),
        robustness({"rotation": 0.5}, data_sha256="other"),
        robustness({"rotation": 0.5}, strengths={"rotation": (1, 2, 3, 4, 6)}),
        robustness({"contrast": 0.5}),
    ],
)
def test_a_baseline_of_other_corrupted_images_is_rejected(baseline):
    with pytest.raises(UserError, match="other corruptions or other images"):
        corruption_errors(robustness({"rotation": 0.7}), baseline)


def test_a_baseline_without_errors_is_rejected():
    with pytest.raises(UserError, match="no error under rotation"):
        corruption_errors(robustness({"rotation": 0.7}), robustness({"rotation": 1.0}))


def test_a_result_survives_a_round_trip_through_json(images, tmp_path):
    result = evaluate_robustness(by_brightness, images, torch.zeros(70, dtype=torch.long), corruptions=["shear"])
    (tmp_path / "robustness.json").write_text(json.dumps(result.to_dict()))
    assert read_robustness(tmp_path / "robustness.json") == result
    assert result.to_dict()["mean"] == result.mean


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"clean": 0.9}', '{"accuracy": 3, "strengths": {}}'])
def test_the_error_names_a_file_that_is_not_a_record(tmp_path, content):
    path = tmp_path / "robustness.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"robustness\.json is (missing|not a robustness record)"):
        read_robustness(path)


def test_an_unknown_corruption_is_rejected(images):
    with pytest.raises(UserError, match="no corruption 'fog'"):
        evaluate_robustness(by_brightness, images, torch.zeros(70, dtype=torch.long), corruptions=["fog"])


def test_the_heat_map_shows_accuracies_means_and_errors():
    result = robustness({"rotation": 0.125, "shot_noise": 0.5}, clean=0.987)
    axes = Figure().subplots()
    plot_robustness(result, axes, title="t", errors=CorruptionErrors({"rotation": 81.0, "shot_noise": 93.0}))
    rows = {}
    for text in axes.texts:
        rows.setdefault(text.get_position()[1], []).append(text.get_text())
    assert {row: sorted(cells) for row, cells in rows.items()} == {
        0: ["98.7"],
        1: [*["12.5"] * 6, "81"],
        2: [*["50.0"] * 6, "93"],
        3: [*["31.2"] * 6, "87"],
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Clean", "Rotation", "Shot noise", "Mean"]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_of_the_corruptions_shows_each_at_each_severity(images, channels):
    image = images[0].repeat(channels, 1, 1)
    (axes,) = plot_corruptions(image).axes
    drawn = [torch.from_numpy(picture.get_array().data.copy()) for picture in axes.images]
    expected = [corrupt(image[None], name, severity)[0] for name in CORRUPTIONS for severity in range(1, 6)]
    assert len(drawn) == len(expected) == 60
    for pixels, corrupted in zip(drawn, expected, strict=True):
        assert torch.equal(pixels.reshape(10, 10, channels), corrupted.permute(1, 2, 0))
    labels = {text.get_text() for text in axes.texts}
    assert {"Shot noise", "Erasing", "severity 1", "severity 5"} <= labels
