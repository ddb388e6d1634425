"""Predictions: collected image by image, stored, and ranked by what a network cannot decide."""

import csv
import io
from types import SimpleNamespace

import pytest
import torch

from fashion_cnn.analysis.dynamics import ambiguous_images_csv, most_confident_errors, prediction_entropy
from fashion_cnn.analysis.monitor import PredictionCollector
from fashion_cnn.data import Batch
from fashion_cnn.metrics.classification import confusion_matrix
from fashion_cnn.metrics.predictions import Predictions, read_predictions, write_predictions


def made_up(probabilities, targets):
    return Predictions(torch.tensor(probabilities).log(), torch.tensor(targets), torch.arange(len(targets)))


def test_a_collector_gives_each_image_once_in_the_order_of_the_data_set():
    collector = PredictionCollector()
    trainer = SimpleNamespace(val_dataloaders={"train": None, "val": None}, world_size=1)
    for indices in ([7, 2], [4]):
        logits = torch.tensor(indices, dtype=torch.bfloat16)[:, None].repeat(1, 3)
        batch = Batch(None, torch.tensor(indices) % 3, torch.tensor(indices))
        collector.on_validation_batch_end(trainer, None, {"logits": logits}, batch, 0, dataloader_idx=1)
    collector.on_validation_epoch_end(trainer, None)
    (split,) = collector.predictions
    predictions = collector.predictions[split]
    assert split == "val"
    assert predictions.indices.tolist() == [2, 4, 7]
    assert predictions.targets.tolist() == [2, 1, 1]
    assert predictions.logits[:, 0].tolist() == [2, 4, 7]
    assert predictions.logits.dtype == torch.float32


def test_what_is_stored_is_read_back(tmp_path):
    predictions = made_up([[0.7, 0.3], [0.2, 0.8]], [0, 0])
    write_predictions(tmp_path / "p.npz", {"best.val": predictions})
    read = read_predictions(tmp_path / "p.npz")
    assert list(read) == ["best.val"]
    assert torch.equal(read["best.val"].logits, predictions.logits)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_losses_and_confusion_follow_from_the_logits():
    predictions = made_up([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]], [0, 2, 2])
    assert predictions.losses.exp().tolist() == pytest.approx([1 / 0.7, 1 / 0.3, 1 / 0.5])
    assert predictions.correct.tolist() == [True, False, True]
    assert confusion_matrix(predictions).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]


def test_mistakes_come_by_confidence_and_ambiguity_by_entropy():
    predictions = made_up([[0.6, 0.4], [0.9, 0.1], [0.5, 0.5], [0.99, 0.01]], [1, 1, 0, 0])
    assert most_confident_errors(predictions, 5).tolist() == [1, 0]
    assert prediction_entropy(predictions)[2].item() == pytest.approx(torch.tensor(2.0).log().item())
    other = made_up([[0.7, 0.3]], [0])
    rows = list(csv.DictReader(io.StringIO(ambiguous_images_csv({"val": predictions, "test": other}, ["Bag", "Coat"]))))
    assert [(row["split"], row["index"]) for row in rows] == [
        ("val", "2"),
        ("val", "0"),
        ("test", "0"),
        ("val", "1"),
        ("val", "3"),
    ]
    assert (rows[1]["label"], rows[1]["first"], rows[1]["second"]) == ("Coat", "Bag", "Coat")


def test_balanced_accuracy_counts_each_class_alike_however_many_images_it_has():
    logits = torch.eye(3)[[0, 0, 1, 1]]
    # Two of three, and the only one; of the third class there is no image.
    assert Predictions(logits, torch.tensor([0, 0, 0, 1]), torch.arange(4)).balanced_accuracy == pytest.approx(5 / 6)
