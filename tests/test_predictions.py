"""Predictions: collected during validation, stored, and ranked by confidence and entropy."""

import csv
import io
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fashion_cnn.analysis.dynamics import ambiguous_images_csv, most_confident_errors, prediction_entropy
from fashion_cnn.analysis.monitor import PredictionCollector
from fashion_cnn.data import Batch
from fashion_cnn.metrics import predictions as predictions_module
from fashion_cnn.metrics.classification import confusion_matrix
from fashion_cnn.metrics.predictions import Predictions, read_predictions, write_predictions


def make_predictions(probabilities, targets):
    return Predictions(torch.tensor(probabilities).log(), torch.tensor(targets), torch.arange(len(targets)))


def test_collector_orders_images_by_their_index():
    collector = PredictionCollector()
    trainer = SimpleNamespace(val_dataloaders={"train": None, "val": None}, testing=False, world_size=1)
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


def test_predictions_are_stored_and_read_back(tmp_path):
    predictions = make_predictions([[0.7, 0.3], [0.2, 0.8]], [0, 0])
    write_predictions(tmp_path / "p.npz", {"best.val": predictions})
    stored = read_predictions(tmp_path / "p.npz")
    assert list(stored) == ["best.val"]
    assert torch.equal(stored["best.val"].logits, predictions.logits)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_predictions_are_on_disk_before_they_replace_older_ones(tmp_path, monkeypatch):
    file = tmp_path / "p.npz"
    older = make_predictions([[0.7, 0.3]], [0])
    write_predictions(file, {"val": older})
    synced = []

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        assert torch.equal(read_predictions(file)["val"].logits, older.logits)

    monkeypatch.setattr(os, "fsync", fsync)
    write_predictions(file, {"val": make_predictions([[0.2, 0.8]], [0])})
    assert synced[0] == file.stat().st_size


@pytest.mark.parametrize(
    "arrays",
    [
        {"logits": np.zeros((3, 2), np.float32)},
        {"logits": np.zeros(2, np.float32)},
        {"logits": np.zeros((2, 2))},
        {"logits": np.array([[0, np.nan], [0, 0]], np.float32)},
        {"logits": np.array([["a", "b"], ["c", "d"]])},
        {"logits": np.array([[{}, {}], [{}, {}]])},
        {"targets": np.array([0, 2])},
        {"targets": np.array([0, -1])},
        {"targets": np.array([0.0, 1.0])},
        {"indices": np.array([1])},
        {"indices": None},
        {"logits": np.zeros((2, 1_000_000), np.float32)},
    ],
)
def test_damaged_predictions_raise_with_a_reason(tmp_path, monkeypatch, arrays):
    monkeypatch.setattr(predictions_module, "_MAX_UNPACKED", 1_000_000)
    whole = {"logits": np.zeros((2, 2), np.float32), "targets": np.array([0, 1]), "indices": np.array([0, 1])}
    named = {f"best.val.{name}": array for name, array in (whole | arrays).items() if array is not None}
    np.savez_compressed(tmp_path / "p.npz", **named)
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        read_predictions(tmp_path / "p.npz")


def test_files_that_hold_no_predictions_raise(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text").write_text("text")
    (tmp_path / "nothing").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"\w"):
            read_predictions(path)


def test_losses_and_confusion_matrix_follow_from_the_logits():
    predictions = make_predictions([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]], [0, 2, 2])
    assert predictions.losses.exp().tolist() == pytest.approx([1 / 0.7, 1 / 0.3, 1 / 0.5])
    assert predictions.correct.tolist() == [True, False, True]
    assert confusion_matrix(predictions).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]


def test_errors_are_ordered_by_confidence_and_ambiguous_images_by_entropy():
    predictions = make_predictions([[0.6, 0.4], [0.9, 0.1], [0.5, 0.5], [0.99, 0.01]], [1, 1, 0, 0])
    assert most_confident_errors(predictions, 5).tolist() == [1, 0]
    assert prediction_entropy(predictions)[2].item() == pytest.approx(torch.tensor(2.0).log().item())
    other = make_predictions([[0.7, 0.3]], [0])
    rows = list(csv.DictReader(io.StringIO(ambiguous_images_csv({"val": predictions, "test": other}, ["Bag", "Coat"]))))
    assert [(row["split"], row["index"]) for row in rows] == [
        ("val", "2"),
        ("val", "0"),
        ("test", "0"),
        ("val", "1"),
        ("val", "3"),
    ]
    assert (rows[1]["label"], rows[1]["first"], rows[1]["second"]) == ("Coat", "Bag", "Coat")


def test_balanced_accuracy_weights_classes_equally():
    logits = torch.eye(3)[[0, 0, 1, 1]]
    # Recall is 2/3 of three images and 1 of one; the third class has no image.
    assert Predictions(logits, torch.tensor([0, 0, 0, 1]), torch.arange(4)).balanced_accuracy == pytest.approx(5 / 6)
