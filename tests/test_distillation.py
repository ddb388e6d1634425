"""Knowledge distillation from finished runs."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import fashion_cnn
from fashion_cnn.data import Batch
from fashion_cnn.errors import UserError
from fashion_cnn.models import CutMix, ImageClassifier, ResNet
from fashion_cnn.runs import Run
from fashion_cnn.train import main, train
from fashion_cnn.training.distillation import Distillation, find_teachers

NETWORK = partial(ResNet, stem=[8], widths=[8], depths=[0])


@pytest.fixture
def teacher(tiny):
    return train(tiny("callbacks=essential", "trainer.max_epochs=1", "seed=5", "test=false"))["run"]


def make_batch():
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(12, 1, 12, 12, generator=generator), torch.arange(12) % 3, torch.arange(12))


@pytest.mark.slow
def test_the_target_interpolates_smoothed_labels_and_the_teachers_mean_prediction(tiny):
    teachers = [train(tiny("callbacks=essential", "trainer.max_epochs=1", f"seed={seed}")) for seed in (5, 6)]
    networks = [fashion_cnn.load(results["run"]).module for results in teachers]
    student = ImageClassifier(
        network=networks[0].network,
        image_shape=networks[0].image_shape,
        num_classes=networks[0].num_classes,
        distillation=Distillation([results["run"] for results in teachers], share=0.25),
        label_smoothing=0.1,
    ).eval()
    images, targets = torch.randn(6, *student.image_shape), torch.arange(6) % student.num_classes
    with torch.no_grad():
        predictions = torch.stack([network(images) for network in networks]).mean(0).softmax(1)
        smoothed = 0.9 * functional.one_hot(targets, student.num_classes) + 0.1 / student.num_classes
        expected = functional.cross_entropy(student(images), 0.75 * smoothed + 0.25 * predictions)
        loss = student.training_step(Batch(images, targets, torch.arange(6)), 0)["loss"]
    torch.testing.assert_close(loss, expected)


def test_teachers_see_the_images_as_they_were_mixed():
    calls = []

    def record_call(images, probabilities):
        calls.append((images, probabilities))
        return probabilities

    module = ImageClassifier(
        network=NETWORK(in_channels=1, num_classes=3),
        image_shape=(1, 12, 12),
        num_classes=3,
        mixing=CutMix(p=1.0),
        distillation=record_call,
    )
    batch = make_batch()
    outputs = module.training_step(batch, 0)
    ((images, probabilities),) = calls
    assert not torch.equal(images, batch.images)
    assert ((probabilities > 0).sum(1) > 1).any()
    # The partner is the previous image, which has another class.
    torch.testing.assert_close(outputs["mix_lambda"], probabilities.gather(1, batch.targets[:, None])[:, 0])


def test_a_trained_student_loads_without_its_teacher(tiny, teacher):
    results = train(
        tiny("distillation=soft_labels", f"distillation.teachers=[{teacher}]", "distillation.share=1", "seed=1")
    )
    assert results["teachers_seconds"] == Run(Path(teacher)).results()["seconds"]
    Run(Path(teacher)).best_checkpoint.unlink()
    student = fashion_cnn.load(results["run"]).module
    assert student(torch.zeros(1, *student.image_shape)).shape == (1, student.num_classes)


@pytest.mark.training
def test_all_finished_runs_of_a_folder_are_teachers_and_recorded_in_the_config(tiny, teacher):
    folder = Path(teacher).parent
    other = train(tiny("callbacks=essential", "trainer.max_epochs=1", "seed=6", "test=false"))["run"]
    results = train(
        tiny("distillation=soft_labels", f"distillation.teachers={folder}", "trainer.max_epochs=1", "seed=1")
    )
    assert Run(Path(results["run"])).config().distillation.teachers == [
        str(Path(run).resolve()) for run in (teacher, other)
    ]


def test_loading_the_teachers_does_not_advance_the_random_state(teacher):
    distillation = Distillation([teacher], share=0.5)
    images, probabilities = torch.zeros(2, 1, 20, 20), torch.full((2, 4), 0.25)
    random_values = []
    for _ in range(2):
        torch.manual_seed(0)
        distillation(images, probabilities)
        random_values.append(torch.rand(3))
    assert torch.equal(*random_values)


def test_a_tilde_in_the_path_of_a_teacher_is_expanded(tiny, teacher, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(teacher).parent))
    config = tiny("distillation=soft_labels", f"distillation.teachers='~/{Path(teacher).name}'")
    assert find_teachers(config) == [str(Path(teacher).resolve())]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distillation.teachers=nowhere"], "nowhere holds no finished run"),
        (["distillation.teachers=null"], "distillation.teachers is empty"),
        (["distillation.share=0"], "distillation.share=0"),
        (["data.split_seed=1"], "data.split_seed is 0 there, 1 here"),
        (["data.mean=[0.1]"], "was trained on other data (data.mean is"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_settings_are_refused_before_a_run_directory_exists(command, tiny, teacher, overrides, message):
    from conftest import TINY_DATA

    runs_dir = Path(teacher).parent.parent
    before = list(runs_dir.rglob("config.yaml"))
    status, _, err = command(
        main,
        *TINY_DATA,
        f"runs_dir={runs_dir}",
        "distillation=soft_labels",
        f"distillation.teachers={teacher}",
        *overrides,
    )
    assert status in (1, 2)
    assert message in err
    assert list(runs_dir.rglob("config.yaml")) == before


def test_a_student_without_validation_set_accepts_a_teacher_of_another_split(tiny, teacher):
    overrides = [
        "distillation=soft_labels",
        f"distillation.teachers={teacher}",
        "data.val_size=0",
        "trainer.max_epochs=1",
    ]
    assert "val/accuracy" not in train(tiny(*overrides))


def test_a_share_above_one_is_refused():
    with pytest.raises(UserError, match=r"distillation\.share=1\.5"):
        Distillation(["run"], share=1.5)
