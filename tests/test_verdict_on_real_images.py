"""Verdict and label errors on real images with known label noise."""

import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from fashion_cnn.analysis.dynamics import TrainingDynamics, likely_label_errors
from fashion_cnn.analysis.history import read_history
from fashion_cnn.analysis.monitor import GapMonitor
from fashion_cnn.analysis.verdict import judge
from fashion_cnn.cli.main import compose
from fashion_cnn.data import FashionMNISTDataModule
from fashion_cnn.runs import Run
from fashion_cnn.train import train
from fashion_cnn.training import build
from fashion_cnn.training.session import quieten_lightning

pytestmark = pytest.mark.training


class ShuffledLabels(FashionMNISTDataModule):
    """Fashion-MNIST with the labels of half of the training split permuted."""

    def setup(self, stage=None):
        if hasattr(self, "train_split"):
            return
        super().setup(stage)
        split = self.train_split
        self.true_targets = split.targets.clone()
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(split), generator=generator)[: len(split) // 2]
        split.targets[rows] = split.targets[rows[torch.randperm(len(rows), generator=generator)]]
        self.train_probe.targets[:] = split.targets[: len(self.train_probe)]


@pytest.fixture(scope="session")
def memorising_run(fashion_mnist_root, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("run"))
    config = compose(
        overrides=[
            "experiment=overfit",
            "model=tiny",
            "data._target_=test_verdict_on_real_images.ShuffledLabels",
            f"data.train_fraction={1000 / 59_000}",
            "data.val_size=1000",
            "data.batch_size=32",
            f"data.root='{fashion_mnist_root}'",
            "trainer.accelerator=cpu",
            "trainer.max_epochs=45",
            "trainer.check_val_every_n_epoch=5",
            "logger.tensorboard=null",
            "callbacks.lines=null",
        ]
    )
    quieten_lightning()
    torch.manual_seed(0)
    data = build.data(config)
    module = build.module(config, data)
    trainer = build.trainer(config, data, run.path)
    trainer.fit(module, datamodule=data)
    dynamics = next(part for part in trainer.callbacks if isinstance(part, TrainingDynamics)).result()
    monitor = next(part for part in trainer.callbacks if isinstance(part, GapMonitor))
    return read_history(run), dynamics, data, monitor.passes, config


def test_network_trained_on_shuffled_labels_memorises(memorising_run):
    history, _, data, passes, config = memorising_run
    assert len(data.train_probe) == 1000
    counts = {"train_images": 1000, "probe_count": 1000, "val_count": len(data.val_split), "parameters": 100_000}
    verdict = judge(history, config, passes=passes, **counts)
    assert verdict.kind == "memorising", verdict.rule
    assert passes.correct.shape == (9, 1000)
    assert verdict.loss_rise.low > 0
    assert verdict.rising_since is not None


def test_one_epoch_is_unlike_the_trainings_of_the_study(fashion_mnist_root, tmp_path):
    results = train(
        compose(
            overrides=[
                "model=tiny",
                "data.train_fraction=0.2",
                f"data.root='{fashion_mnist_root}'",
                f"runs_dir='{tmp_path}'",
                "trainer.accelerator=cpu",
                "trainer.max_epochs=1",
                "test=false",
            ]
        )
    )
    assert results["verdict"] == "undecided", results["verdict_rule"]
    assert "the study has no training like this one" in results["verdict_rule"]
    assert results["gap_best/accuracy_low"] <= results["gap_best/accuracy"] <= results["gap_best/accuracy_high"]


def test_shuffled_labels_are_ranked_as_likely_errors(memorising_run):
    _, dynamics, data, _, _ = memorising_run
    order = data.train_split.indices.argsort()
    assert torch.equal(dynamics.indices, data.train_split.indices[order])
    wrong = (data.train_split.targets != data.true_targets)[order]
    assert 400 < wrong.sum() < 500, "about a tenth of the shuffled labels are unchanged"
    suspicion = torch.empty(len(wrong))
    suspicion[likely_label_errors(dynamics)] = torch.linspace(1, 0, len(wrong))
    assert binary_auroc(suspicion, wrong.long()) >= 0.9
