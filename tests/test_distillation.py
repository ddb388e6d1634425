"""Learning from what trained networks answer."""

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


def a_batch():
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(12, 1, 12, 12, generator=generator), torch.arange(12) % 3, torch.arange(12))


def test_the_target_is_the_blend_of_the_smoothed_label_and_the_mean_answer_to_the_same_images(tiny):
    teachers = [train(tiny("callbacks=essential", "trainer.max_epochs=1", f"seed={seed}")) for seed in (5, 6)]
    networks = [fashion_cnn.load(results["run"]) for results in teachers]
    student = ImageClassifier(
        network=networks[0].network,
        image_shape=networks[0].image_shape,
        num_classes=networks[0].num_classes,
        distillation=Distillation([results["run"] for results in teachers], share=0.25),
        label_smoothing=0.1,
    ).eval()
    images, targets = torch.randn(6, *student.image_shape), torch.arange(6) % student.num_classes
    with torch.no_grad():
        answers = torch.stack([network(images) for network in networks]).mean(0).softmax(1)
        smoothed = 0.9 * functional.one_hot(targets, student.num_classes) + 0.1 / student.num_classes
        expected = functional.cross_entropy(student(images), 0.75 * smoothed + 0.25 * answers)
        found = student.training_step(Batch(images, targets, torch.arange(6)), 0)["loss"]
    torch.testing.assert_close(found, expected)


def test_teachers_see_the_images_as_they_were_mixed():
    seen = []

    def answer(images, probabilities):
        seen.append((images, probabilities))
        return probabilities

    module = ImageClassifier(
        network=NETWORK(in_channels=1, num_classes=3),
        image_shape=(1, 12, 12),
        num_classes=3,
        mixing=CutMix(p=1.0),
        distillation=answer,
    )
    batch = a_batch()
    outputs = module.training_step(batch, 0)
    ((images, probabilities),) = seen
    assert not torch.equal(images, batch.images)
    assert ((probabilities > 0).sum(1) > 1).any()
    # The partner is the image before, of another class.
    torch.testing.assert_close(outputs["mix_lambda"], probabilities.gather(1, batch.targets[:, None])[:, 0])


def test_a_student_follows_its_teacher_and_answers_without_it(tiny, teacher):
    results = train(
        tiny("distillation=soft_labels", f"distillation.teachers=[{teacher}]", "distillation.share=1", "seed=1")
    )
    assert results["teachers_seconds"] == Run(Path(teacher)).results()["seconds"]
    Run(Path(teacher)).best_checkpoint.unlink()
    student = fashion_cnn.load(results["run"])
    assert student(torch.zeros(1, *student.image_shape)).shape == (1, student.num_classes)


@pytest.mark.training
def test_all_finished_runs_of_a_folder_teach_and_are_written_down(tiny, teacher):
    folder = Path(teacher).parent
    other = train(tiny("callbacks=essential", "trainer.max_epochs=1", "seed=6", "test=false"))["run"]
    results = train(
        tiny("distillation=soft_labels", f"distillation.teachers={folder}", "trainer.max_epochs=1", "seed=1")
    )
    assert Run(Path(results["run"])).config().distillation.teachers == [
        str(Path(run).resolve()) for run in (teacher, other)
    ]


def test_when_the_teachers_are_loaded_changes_nothing_of_what_is_drawn(teacher):
    learned = Distillation([teacher], share=0.5)
    images, probabilities = torch.zeros(2, 1, 20, 20), torch.full((2, 4), 0.25)
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        learned(images, probabilities)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_a_teacher_in_the_home_directory_is_found(tiny, teacher, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(teacher).parent))
    config = tiny("distillation=soft_labels", f"distillation.teachers='~/{Path(teacher).name}'")
    assert find_teachers(config) == [str(Path(teacher).resolve())]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["distillation.teachers=nowhere"], "nowhere holds no finished run"),
        (["distillation.teachers=null"], "distillation.teachers is empty"),
        (["distillation.share=0"], "distillation.share=0"),
        (["data.split_seed=1"], "data.split_seed is 0 there, 1 here"),
        (["data.mean=[0.1]"], "was trained on other data (data.mean is"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_told_before_there_is_a_run(command, tiny, teacher, typed, said):
    from conftest import TINY_DATA

    runs_dir = Path(teacher).parent.parent
    before = list(runs_dir.rglob("config.yaml"))
    status, _, err = command(
        main, *TINY_DATA, f"runs_dir={runs_dir}", "distillation=soft_labels", f"distillation.teachers={teacher}", *typed
    )
    assert status in (1, 2)
    assert said in err
    assert list(runs_dir.rglob("config.yaml")) == before


def test_a_student_that_keeps_no_validation_images_learns_from_any_split(tiny, teacher):
    typed = ["distillation=soft_labels", f"distillation.teachers={teacher}", "data.val_size=0", "trainer.max_epochs=1"]
    assert "val/accuracy" not in train(tiny(*typed))


def test_a_share_beyond_all_is_refused():
    with pytest.raises(UserError, match=r"distillation\.share=1\.5"):
        Distillation(["run"], share=1.5)
