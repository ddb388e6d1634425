"""Training dynamics of a few epochs with given probabilities, the data map and the ranking of label errors."""

import csv
import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fashion_cnn.analysis.dynamics import (
    REGIONS,
    Dynamics,
    TrainingDynamics,
    examples_csv,
    likely_label_errors,
    regions,
)
from fashion_cnn.data import Batch
from fashion_cnn.plots.training import plot_data_map, plot_training

# Probabilities of the label by epoch, of the images at positions 3, 5 and 8; None if it was not presented.
EPOCHS = [(0.9, 0.2, 0.2), (0.9, 0.8, 0.1), (None, 0.1, 0.2), (0.9, 0.7, 0.3)]
TARGETS = torch.tensor([0, 1, 0])
INDICES = torch.tensor([3, 5, 8])


def trainer(epoch=0):
    split = SimpleNamespace(indices=INDICES, targets=TARGETS)
    strategy = SimpleNamespace(reduce=lambda values, reduce_op: values)
    return SimpleNamespace(current_epoch=epoch, datamodule=SimpleNamespace(train_split=split), strategy=strategy)


def run_epochs(callback, epochs, first=0):
    callback.on_fit_start(trainer(), SimpleNamespace(device="cpu"))
    for number, probabilities in enumerate(epochs, start=first):
        state = trainer(number)
        callback.on_train_epoch_start(state, None)
        for image in torch.randperm(3).tolist():
            if probabilities[image] is not None:
                probability = torch.tensor(probabilities[image])
                pair = [probability, 1 - probability] if TARGETS[image] == 0 else [1 - probability, probability]
                logits = torch.stack(pair).log()[None]
                batch = Batch(torch.zeros(1), TARGETS[image : image + 1], INDICES[image : image + 1])
                callback.on_train_batch_end(state, None, {"logits": logits}, batch, 0)
        callback.on_train_epoch_end(state, None)
    return callback


def test_dynamics_of_each_image_over_the_epochs():
    result = run_epochs(TrainingDynamics(), EPOCHS).result()
    assert result.indices.tolist() == [3, 5, 8]
    assert result.targets.tolist() == [0, 1, 0]
    assert result.seen.tolist() == [3, 4, 4]
    assert result.recognised.tolist() == [3, 2, 0]
    assert result.learned_epoch.tolist() == [1, 2, 0]
    assert result.forgotten.tolist() == [0, 1, 0]
    assert result.confidence.tolist() == pytest.approx([0.9, 0.45, 0.2])
    std = torch.tensor([0.2, 0.8, 0.1, 0.7]).std(correction=0).item()
    assert result.variability.tolist() == pytest.approx([0, std, 0.0707], abs=1e-3)
    assert result.other.tolist() == [1, 0, 1], "of two classes the other one"
    assert result.margin[0].item() == pytest.approx(torch.tensor(0.9 / 0.1).log().item(), abs=1e-4)


def test_resuming_from_a_checkpoint_gives_the_same_dynamics():
    whole = run_epochs(TrainingDynamics(), EPOCHS).result()
    first = run_epochs(TrainingDynamics(), EPOCHS[:2])
    second = TrainingDynamics()
    second.load_state_dict(first.state_dict())
    resumed = run_epochs(second, EPOCHS[2:], first=2).result()
    for name in vars(whole):
        assert torch.equal(getattr(whole, name), getattr(resumed, name)), name


def test_a_checkpoint_of_an_older_version_has_no_other_classes():
    first = run_epochs(TrainingDynamics(), EPOCHS[:2])
    second = TrainingDynamics()
    second.load_state_dict({name: values for name, values in first.state_dict().items() if name != "other"})
    assert run_epochs(second, EPOCHS[2:], first=2).result().other.tolist() == [1, 0, 1]


def test_images_that_were_never_presented_are_left_out():
    assert run_epochs(TrainingDynamics(), [(0.9, None, 0.1)]).result().indices.tolist() == [3, 8]


def test_strongly_mixed_images_do_not_count_as_presented():
    callback = TrainingDynamics()
    callback.on_fit_start(trainer(), SimpleNamespace(device="cpu"))
    callback.on_train_epoch_start(trainer(), None)
    outputs = {"logits": torch.eye(3)[:, :2], "mix_lambda": torch.tensor([1.0, 0.5, 0.95])}
    callback.on_train_batch_end(trainer(), None, outputs, Batch(torch.zeros(3), TARGETS, INDICES), 0)
    callback.on_train_epoch_end(trainer(), None)
    assert callback.result().indices.tolist() == [3, 8]


def test_image_presented_by_two_processes_counts_as_their_mean():
    callback = TrainingDynamics()
    state = trainer()
    # The other process presented the same image.
    state.strategy.reduce = lambda values, reduce_op: {"sum": 2 * values, "max": values}[reduce_op]
    callback.on_fit_start(state, SimpleNamespace(device="cpu"))
    callback.on_train_epoch_start(state, None)
    logits = torch.tensor([[0.8, 0.2]]).log()
    callback.on_train_batch_end(state, None, {"logits": logits}, Batch(torch.zeros(1), TARGETS[:1], INDICES[:1]), 0)
    callback.on_train_epoch_end(state, None)
    result = callback.result()
    assert result.confidence.tolist() == pytest.approx([0.8])
    assert result.variability.tolist() == pytest.approx([0], abs=1e-3)
    assert result.recognised.tolist() == [1]


def test_other_class_of_an_image_that_two_processes_presented_is_one_of_theirs():
    callback = TrainingDynamics()
    state = trainer()
    callback.on_fit_start(state, SimpleNamespace(device="cpu"))
    callback.on_train_epoch_start(state, None)
    logits = torch.tensor([[0.5, 0.1, 0.1, 0.3]]).log()
    callback.on_train_batch_end(state, None, {"logits": logits}, Batch(torch.zeros(1), TARGETS[:1], INDICES[:1]), 0)
    elsewhere = callback._epoch.clone()
    elsewhere[INDICES[0], -1] = 1

    def reduce(values, reduce_op):
        """Reduce in place, as `torch.distributed.all_reduce` does."""
        other = elsewhere if values.shape == elsewhere.shape else elsewhere[:, -1]
        return values.add_(other) if reduce_op == "sum" else values.copy_(torch.maximum(values, other))

    state.strategy.reduce = reduce
    callback.on_train_epoch_end(state, None)
    assert callback.result().other.tolist() == [3], "classes 1 and 3 have no mean"
    assert callback.result().confidence.tolist() == pytest.approx([0.5])


def make_dynamics(confidence, variability, recognised=None):
    count = len(confidence)
    epochs = torch.full((count,), 10)
    return Dynamics(
        indices=torch.arange(count),
        targets=torch.zeros(count, dtype=torch.int64),
        seen=epochs,
        learned_epoch=epochs,
        recognised=torch.tensor(recognised or [10] * count),
        forgotten=epochs,
        confidence=torch.tensor(confidence),
        variability=torch.tensor(variability),
        margin=torch.tensor(confidence) - 0.5,
        other=torch.zeros(count, dtype=torch.int64),
    )


def test_regions_follow_confidence_and_variability():
    dynamics = make_dynamics([0.9, 0.9, 0.5, 0.1, 0.1], [0.1, 0.3, 0.1, 0.1, 0.3])
    names = [REGIONS[region] for region in regions(dynamics).tolist()]
    assert names == ["easy", "ambiguous", "ambiguous", "hard", "ambiguous"]
    (axes,) = plot_data_map(dynamics).axes
    assert [len(points.get_offsets()) for points in axes.collections] == [1, 3, 1]


def test_label_errors_are_ranked_by_correct_epochs_then_by_margin():
    dynamics = make_dynamics([0.9, 0.2, 0.1, 0.4], [0.1] * 4, recognised=[10, 2, 2, 1])
    assert likely_label_errors(dynamics).tolist() == [3, 2, 1, 0]
    rows = list(csv.DictReader(io.StringIO(examples_csv(dynamics, ["Bag"]))))
    assert [row["indices"] for row in rows] == ["3", "2", "1", "0"]
    assert [row["label_error_rank"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0]["label"] == "Bag"
    assert rows[1]["region"] == "hard"


def test_images_that_were_seen_once_are_neither_mapped_nor_called_label_errors():
    dynamics = make_dynamics([0.9, 0.2], [0.0, 0.0])
    images = torch.zeros(10, 1, 4, 4, dtype=torch.uint8)
    split = SimpleNamespace(images_at=lambda indices: images[indices])
    data = SimpleNamespace(val_size=0, train_split=split, class_names=["Bag"])
    once = replace(dynamics, seen=torch.ones_like(dynamics.seen))
    assert plot_training(None, once, data, None) == {}
    assert plot_training(None, replace(dynamics, seen=torch.full_like(dynamics.seen, 2)), data, None).keys() == {
        "cartography",
        "label_errors",
    }
