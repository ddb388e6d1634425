"""`python -m fashion_cnn.teach`: learning concepts from a few examples, and recognising them."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_DATA, file_size_limit
from PIL import Image
from tiny_images import TinyDataModule

from fashion_cnn.cli.main import compose
from fashion_cnn.concepts import Background, Concepts, fit_background, joint_false_alarm_rate, learn, with_common_margin
from fashion_cnn.inference.network import TrainedNetwork, instantiate_data
from fashion_cnn.metrics.predictions import Predictions, write_predictions
from fashion_cnn.predict import main as predict_main
from fashion_cnn.runs import Run
from fashion_cnn.teach import main
from fashion_cnn.train import train


def make_background(generator):
    """Background whose standard deviation along the first of eight directions is ten times that along the others."""
    spread = torch.tensor([10.0] + [1.0] * 7)
    known = torch.randn(4000, 8, generator=generator) * spread
    covariance = torch.cov(known.T)
    variances, directions = torch.linalg.eigh(covariance)
    whitener = directions / variances.sqrt() @ directions.T
    return Background(
        known.mean(dim=0), whitener, (torch.randn(5000, 8, generator=generator) * spread) @ whitener
    ), spread


def test_a_concept_is_recognised_at_the_estimated_rate_with_the_allowed_false_alarms():
    generator = torch.Generator().manual_seed(0)
    background, spread = make_background(generator)
    offset = torch.tensor([3.0, 4.0] + [0.0] * 6)

    def draw_examples(count):
        return offset + torch.randn(count, 8, generator=generator) * spread * 0.7

    concept = learn("new", draw_examples(10), background, false_alarms=0.05)
    known = background.whiten(torch.randn(20000, 8, generator=generator) * spread)
    assert concept.scores(known).mean().item() == pytest.approx(0, abs=0.1)
    assert concept.scores(known).std().item() == pytest.approx(1, abs=0.1)
    assert (concept.scores(known) > concept.threshold).float().mean().item() == pytest.approx(0.05, abs=0.01)
    recall = (concept.scores(background.whiten(draw_examples(2000))) > concept.threshold).float().mean().item()
    assert recall > 0.9
    assert concept.recognised is not None
    assert concept.recognised / concept.examples == pytest.approx(recall, abs=0.2), "the leave-one-out estimate holds"
    strict = learn("new", draw_examples(10), background, false_alarms=0.001)
    assert strict.threshold > concept.threshold
    assert learn("new", draw_examples(1), background).recognised is None


def test_unrelated_examples_have_a_low_leave_one_out_estimate():
    generator = torch.Generator().manual_seed(1)
    background, spread = make_background(generator)
    concept = learn("nothing", (torch.randn(20, 8, generator=generator) * spread), background)
    assert concept.recognised is not None
    assert concept.recognised <= 5


@pytest.mark.parametrize(("known", "requested", "guaranteed"), [(10, 0.05, 1 / 11), (33, 0.05, 0.05), (33, 0.3, 0.3)])
def test_false_alarms_stay_within_the_guarantee_for_few_known_images(known, requested, guaranteed):
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(1000, 8, generator=generator)
    shares = []
    for _ in range(400):
        background = Background(torch.zeros(8), torch.eye(8), torch.randn(known, 8, generator=generator))
        concept = learn("new", torch.randn(3, 8, generator=generator), background, false_alarms=requested)
        assert concept.false_alarms == pytest.approx(guaranteed)
        shares.append((concept.scores(new) > concept.threshold).float().mean().item())
    assert guaranteed - 1 / (known + 1) < np.mean(shares) < guaranteed + 0.01


def test_the_joint_false_alarm_rate_of_several_concepts_adds_up():
    generator = torch.Generator().manual_seed(0)
    background = Background(torch.zeros(8), torch.eye(8), torch.randn(2000, 8, generator=generator))
    concepts = [learn(str(number), axis[None], background) for number, axis in enumerate(torch.eye(8)[:5])]
    assert joint_false_alarm_rate(concepts[:1], background) == pytest.approx(0.05, abs=0.001)
    assert joint_false_alarm_rate(concepts, background) == pytest.approx(1 - 0.95**5, abs=0.02)
    assert joint_false_alarm_rate([concepts[0], concepts[0]], background) == pytest.approx(0.05, abs=0.001)


def test_many_concepts_together_claim_no_more_images_than_one_alone(tmp_path):
    generator = torch.Generator().manual_seed(0)
    background = Background(torch.zeros(64), torch.eye(64), torch.randn(2000, 64, generator=generator))
    concepts = Concepts(Run(tmp_path), "network")
    concepts.save_background(background)
    examples = torch.randn(50, 1, 64, generator=generator)
    for number, example in enumerate(examples):
        concepts.save(learn(f"{number:02}", example, background))
    unrelated = torch.randn(10_000, 64, generator=generator)
    claimed = sum(bool(names) for names in concepts.recognise(unrelated)) / len(unrelated)
    assert 0.03 < claimed < 0.07
    assert joint_false_alarm_rate(concepts.all, background) == pytest.approx(0.05, abs=0.001)
    recognised = concepts.recognise(examples[:, 0])
    assert [names[0][0] for names in recognised] == [f"{number:02}" for number in range(50)]


def test_equal_concepts_keep_their_threshold():
    generator = torch.Generator().manual_seed(0)
    background = Background(torch.zeros(8), torch.eye(8), torch.randn(200, 8, generator=generator))
    concept = learn("x", torch.ones(1, 8), background)
    assert [each.threshold for each in with_common_margin([concept, concept], background)] == [concept.threshold] * 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on three of four classes."""
    folder = tmp_path_factory.mktemp("runs")
    overrides = [
        *TINY_DATA,
        f"runs_dir='{folder}'",
        "callbacks=essential",
        "data.left_out=[bottom]",
        "data.val_size=24",
    ]
    return Run(Path(train(compose(overrides=[*overrides, "trainer.max_epochs=8"]))["run"]))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of 40 pictures, ten per class."""
    folder = tmp_path_factory.mktemp("pictures")
    images, targets = TinyDataModule(mean=[0.3], std=[0.3], val_size=32).load(train=False)
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        Image.fromarray(image[0].numpy()).save(folder / f"{TinyDataModule.class_names[target]} {number:02}.png")
    return folder


@pytest.fixture
def teach(command, run):
    return lambda *arguments: command(main, f"run={run.path}", *map(str, arguments))


def test_known_images_are_whitened_to_mean_zero_and_shrunk_variances(run):
    network, data = TrainedNetwork(run, flip_embeddings=True), instantiate_data(run)
    background = fit_background(network, data)
    embeddings = network.embed(data.train_split.images_at(data.train_split.indices))
    whitened = background.whiten(embeddings)
    held_back = len(embeddings) // 3
    torch.testing.assert_close(background.others, whitened[-held_back:])
    known = whitened[:-held_back]
    torch.testing.assert_close(known.mean(dim=0), torch.zeros(known.shape[1]), atol=1e-4, rtol=0)
    before, after = (torch.cov(of.double().T, correction=0) for of in (embeddings[:-held_back], known))
    # A variance v becomes v / (v + 0.4 times the mean variance).
    variances = torch.linalg.eigvalsh(before)
    expected = variances / (variances + 0.4 * variances.mean())
    torch.testing.assert_close(torch.linalg.eigvalsh(after), expected, atol=1e-3, rtol=0)
    assert 0.4 < expected.max().item() < 1
    assert expected.min().item() < 0.2, "shrinkage limits directions of low variance"


@pytest.fixture
def remove_concepts(run):
    yield
    for file in run.concepts.glob("concept-*"):
        file.unlink()


@pytest.mark.usefixtures("remove_concepts")
@pytest.mark.slow
def test_a_concept_is_listed_predicted_replaced_and_removed(teach, command, run, pictures):
    assert "has no concepts" in teach()[1]
    examples = [file for file in sorted(pictures.glob("bottom*"))][:5]
    examples_option = "images=[" + ",".join(map(str, examples)) + "]"
    status, out, err = teach("name=at the bottom, (new)", examples_option, "false_alarms=0.1")
    assert (status, err) == (0, "")
    assert "Taught: at the bottom, (new), from 5 examples." in out
    assert "Leave-one-out: " in out
    assert "together" not in out
    status, out, _ = command(predict_main, f"run={run.path}", f"images={pictures}", "format=json", "reject=0")
    records = json.loads(out)
    new = {Path(r["file"]).name[:-7]: [] for r in records}
    for record in records:
        new[Path(record["file"]).name[:-7]].append(record["answer"] == "at the bottom, (new)")
        assert bool(record["taught"]) == (record["answer"] == "at the bottom, (new)")
    assert np.mean(new["bottom"]) > 0.7
    assert np.mean(new["top"] + new["middle"] + new["low"]) < 0.4
    status, out, _ = teach("name=at the bottom, (new)", f"images={examples[0]}")
    assert "Replaced: at the bottom, (new), from 1 example.\n  Its reliability cannot be estimated" in out
    status, out, _ = teach("name=another", f"images={examples[0]}", "false_alarms=0.0001")
    assert "32 images of known classes cannot guarantee false_alarms=0.0001, but 3.03%" in out
    assert out.index("another", out.index("Concepts of")) < out.index("at the bottom")
    assert re.search(r"False alarms of all concepts together: \d+\.\d% of 32 images of known classes\.", out)
    status, out, _ = teach("remove=at the bottom, (new)")
    assert status == 0
    assert "at the bottom" not in out


@pytest.mark.usefixtures("remove_concepts")
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["name=x"], 2, "give images=PATH, its examples, too"),
        (["images=."], 2, "give name='some words', what they show, too"),
        (["name= ", "images=."], 2, "name= is empty"),
        (["name=x", "images=nosuch"], 1, "images=nosuch does not exist"),
        (["remove=nosuch"], 1, "there is no such concept. There are: none."),
        (["name=x", "images=.", "false_alarms=1.5"], 2, "false_alarms=1.5"),
        (["name=x", "images=.", "remove=y"], 2, "exclude each other"),
        (["name=top", "images=."], 1, "name=top is a class of the network already"),
    ],
)
def test_invalid_options_are_reported_in_one_line(teach, arguments, status, message):
    result, out, err = teach(*arguments)
    assert result == status
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


@pytest.mark.usefixtures("remove_concepts")
def test_concepts_of_another_network_are_rejected(teach, run, pictures):
    teach("name=x", f"images={pictures / 'bottom 03.png'}")
    (file,) = run.concepts.glob("concept-*")
    with np.load(file) as stored:
        values = dict(stored)
    np.savez(file, **(values | {"network": "another"}))
    status, _, err = teach()
    assert status == 1
    assert "was taught to another network" in err
    file.write_bytes(b"no archive")
    assert "is damaged" in teach()[2]


@pytest.mark.usefixtures("remove_concepts")
@pytest.mark.parametrize("stored", [{}, {"preparation": 1}])
def test_a_concept_of_pictures_that_were_prepared_in_another_way_has_to_be_taught_again(
    teach, command, run, pictures, stored
):
    picture = pictures / "bottom 03.png"
    teach("name=x", f"images={picture}")
    (file,) = run.concepts.glob("concept-*")
    with np.load(file) as arrays:
        values = {name: array for name, array in arrays.items() if name != "preparation"}
    np.savez(file, **(values | stored))
    for answer in (teach(), command(predict_main, f"run={run.path}", f"images={picture}")):
        assert answer[0] == 1
        assert (
            "an older version prepared the example pictures of x in another way. Teach again with name='x'" in answer[2]
        )
    assert teach("name=x", f"images={picture}")[0] == 0
    assert command(predict_main, f"run={run.path}", f"images={picture}")[0] == 0


@pytest.mark.usefixtures("remove_concepts")
def test_a_concept_with_impossible_values_is_damaged(teach, run, pictures):
    teach("name=x", f"images={pictures / 'bottom 03.png'}")
    (file,) = run.concepts.glob("concept-*")
    with np.load(file) as arrays:
        values = dict(arrays)
    np.savez(file, **(values | {"threshold": "high"}))
    status, _, err = teach()
    assert status == 1
    assert "is damaged" in err


@pytest.mark.usefixtures("remove_concepts")
def test_an_unreadable_picture_is_reported_and_the_others_are_taught(teach, pictures, tmp_path):
    (tmp_path / "a.png").write_bytes((pictures / "bottom 03.png").read_bytes())
    (tmp_path / "b.png").write_text("text")
    status, out, err = teach("name=x", f"images={tmp_path}")
    assert status == 0
    assert "from 1 example" in out
    assert "b.png: is not a picture" in err


@pytest.mark.usefixtures("remove_concepts")
@pytest.mark.parametrize("size", [0, 200, 600])
def test_a_full_disk_ends_teaching_in_one_message_and_leaves_no_half_written_concept(teach, run, pictures, size):
    arguments = ("name=x", f"images={pictures / 'bottom 03.png'}")
    with file_size_limit(size):
        status, _, err = teach(*arguments)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{run.concepts}" in err
    assert "cannot be used (file too large): raise the limit of file sizes (ulimit -f), or choose another" in err
    assert not [file for file in run.concepts.iterdir() if file.name != "background.npz"]
    assert teach(*arguments)[0] == 0


@pytest.mark.usefixtures("remove_concepts")
def test_a_read_only_disk_ends_teaching_in_one_message(teach, run, pictures, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/.temporary")

    teach("name=x", f"images={pictures / 'bottom 03.png'}")
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    for arguments in (["name=y", f"images={pictures / 'bottom 03.png'}"], ["remove=x"]):
        status, out, err = teach(*arguments)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert f"error: {run.concepts} cannot be used (read-only file system): make it writable, or copy the run" in err
    assert teach()[0] == 0


@pytest.mark.usefixtures("remove_concepts")
def test_a_named_pipe_in_place_of_a_concept_is_not_read(teach, run, pictures):
    teach("name=x", f"images={pictures / 'bottom 03.png'}")
    (file,) = run.concepts.glob("concept-*")
    file.unlink()
    os.mkfifo(file)
    status, _, err = teach()
    assert status == 1
    assert f"{file} is damaged (it is not a regular file)" in err


@pytest.mark.usefixtures("remove_concepts")
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_cut_concept_is_reported_in_one_message(teach, run, pictures, share):
    teach("name=x", f"images={pictures / 'bottom 03.png'}")
    (file,) = run.concepts.glob("concept-*")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    status, _, err = teach()
    assert (status, err.count("\n")) == (1, 1)
    assert f"{file} is damaged" in err


@pytest.mark.usefixtures("remove_concepts")
@pytest.mark.parametrize(
    ("start", "values"),
    [
        ("concept", {"direction": np.zeros(3, np.float32)}),
        ("concept", {"direction": np.zeros(16)}),
        ("concept", {"direction": np.zeros((16, 16), np.float32)}),
        ("concept", {"direction": np.full(16, np.nan, np.float32)}),
        ("concept", {"examples": np.float64("inf")}),
        ("background", {"whitener": np.zeros((3, 3), np.float32)}),
        ("background", {"mean": np.array(["a"])}),
        ("background", {"others": np.zeros((0, 16), np.float32)}),
        ("background", {"mean": np.zeros(3, np.float32), "whitener": np.eye(3, dtype=np.float32)}),
    ],
)
def test_concepts_with_arrays_of_other_shapes_and_types_are_damaged(teach, command, run, pictures, start, values):
    teach("name=x", f"images={pictures / 'bottom 03.png'}")
    (file,) = run.concepts.glob(f"{start}*")
    before = file.read_bytes()
    with np.load(file) as arrays:
        np.savez(file, **(dict(arrays) | values))
    try:
        status, out, err = command(predict_main, f"run={run.path}", f"images={pictures / 'bottom 03.png'}")
    finally:
        file.write_bytes(before)
    assert status == 1
    assert "is damaged (" in err
    assert str(file) in err
    assert "Traceback" not in out + err


@pytest.mark.usefixtures("remove_concepts")
def test_no_concept_is_read_that_unpacks_to_far_more_than_its_size(teach, run, pictures, monkeypatch):
    teach("name=x", f"images={pictures / 'bottom 03.png'}")
    (file,) = run.concepts.glob("concept-*")
    with np.load(file) as arrays:
        values = dict(arrays)
    np.savez_compressed(file, **values, unexpected=np.zeros(1000))
    assert teach()[0] == 0
    np.savez_compressed(file, **(values | {"direction": np.zeros(1_000_000, np.float32)}))
    monkeypatch.setattr("fashion_cnn.metrics.predictions._MAX_UNPACKED", 1_000_000)
    status, _, err = teach()
    assert status == 1
    assert f"{file} is damaged (" in err
    assert " bytes unpack to 4,0" in err


@pytest.mark.parametrize("classes", [0, 2])
def test_predictions_without_images_are_damaged(command, run, pictures, classes, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    empty = Predictions(torch.zeros(0, classes), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    write_predictions(copy.predictions_file, {"best.val": empty})
    status, out, err = command(predict_main, f"run={copy.path}", f"images={pictures / 'bottom 03.png'}")
    assert status == 1
    assert f"{copy.predictions_file} is damaged" in err
    assert "Traceback" not in out + err
