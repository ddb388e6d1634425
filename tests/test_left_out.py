"""Classes that a training leaves out."""

import pytest
import torch
from omegaconf import open_dict
from test_comparison import make_run
from tiny_images import TinyDataModule

from fashion_cnn.analysis.comparison import compare
from fashion_cnn.data import FashionMNISTDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.runs import list_runs
from fashion_cnn.train import main
from fashion_cnn.training import build


def splits_of(data):
    data.setup()
    return data.train_split, data.val_split, data.train_probe, data.test_split


@pytest.mark.parametrize("typed", ["[middle,bottom]", "[1,3]", "[3,middle,1]"])
def test_a_network_is_trained_on_the_classes_that_are_kept_numbered_anew(tiny, typed):
    config = tiny(f"data.left_out={typed}")
    data = build.data(config)
    assert list(data.class_names) == ["top", "low"]
    for split in splits_of(data):
        # The made images' labels are 0, 1, 2, 3, 0, 1, …: those of even places are kept.
        assert split.indices.remainder(2).eq(0).all()
        assert split.targets.equal(split.indices % 4 // 2)
    assert build.module(config, data)(data.normalise(data.val_split.images)).shape == (32, 2)


def test_the_test_images_of_the_classes_left_out_are_at_hand_with_their_own_labels(tiny):
    data = build.data(tiny("data.left_out=[1]"))
    data.setup("test")
    assert (len(data.test_split), len(data.left_out_split)) == (30, 10)
    assert data.left_out_split.targets.tolist() == [1] * 10
    assert data.left_out_split.images.equal(data.load(train=False)[0][1::4])


def test_the_splits_stay_stratified_and_each_class_keeps_its_validation_images(tiny):
    whole, part = build.data(tiny("data.val_size=32")), build.data(tiny("data.val_size=24", "data.left_out=[top]"))
    assert part.val_split.targets.bincount().tolist() == [8, 8, 8]
    of_kept_classes = whole.val_split.indices[whole.val_split.targets > 0]
    assert part.val_split.indices.sort().values.equal(of_kept_classes.sort().values)


@pytest.mark.parametrize("left_out", ["data.left_out=[]", "data.left_out=null", None])
def test_nothing_left_out_changes_nothing(tiny, left_out):
    config = tiny(*[left_out] if left_out else [])
    if left_out is None:  # As in a run of an older version.
        with open_dict(config):
            del config.data.left_out
    data = build.data(config)
    assert list(data.class_names) == ["top", "middle", "low", "bottom"]
    train, val, _, test = splits_of(data)
    assert sorted(train.indices.tolist() + val.indices.tolist()) == list(range(160))
    assert test.indices.equal(torch.arange(40))
    for split in (train, val, test):
        assert split.targets.equal(split.indices % 4)
    assert len(data.left_out_split) == 0


def test_the_real_splits_are_those_of_before_there_was_the_option(fashion_mnist_root):
    data = FashionMNISTDataModule(root=fashion_mnist_root)
    data.setup("fit")
    found = [(split.indices[:5000] * torch.arange(1, 5001)).sum() for split in (data.train_split, data.val_split)]
    assert found == [382562061816, 376805012444]


def test_a_run_that_leaves_nothing_out_is_grouped_with_older_ones_that_do_not_know_the_option(tmp_path):
    for seed, data in enumerate([{"val_size": 5}, {"val_size": 5, "left_out": []}]):
        make_run(tmp_path / str(seed), [], seed, 0.9, data=data)
    (group,) = compare(list_runs(tmp_path)).groups
    assert len(group.results) == 2
    make_run(tmp_path / "other", [], 0, 0.9, data={"val_size": 5, "left_out": [8]})
    assert compare(list_runs(tmp_path)).factors == ("data.left_out",)


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        (["bag"], "data.left_out=bag is no class.*0 top, 1 middle"),
        ([4], "data.left_out=4 is no class"),
        ([-1], "data.left_out=-1 is no class"),
        ([0, 1, 2], r"data.left_out=\[0, 1, 2\] leaves 1 of the 4 classes"),
    ],
)
def test_a_class_that_there_is_not_or_too_few_left_is_refused(left_out, said):
    with pytest.raises(UserError, match=said):
        TinyDataModule(mean=[0.5], std=[0.25], val_size=32, left_out=left_out)


def test_a_validation_split_that_the_kept_classes_cannot_fill_is_refused(tiny):
    with pytest.raises(UserError, match=r"data\.val_size=100 cannot be held out of 80 training images"):
        build.data(tiny("data.left_out=[0,1]", "data.val_size=100"))


def test_a_mistake_is_told_on_the_command_line_before_there_is_a_run(command, tmp_path, fashion_mnist_root):
    places = [f"data.root={fashion_mnist_root}", f"runs_dir={tmp_path / 'runs'}"]
    status, _, said = command(main, "data.left_out=[Ankle boot,Bags]", *places)
    assert status == 1
    assert "data.left_out=Bags is no class" in said
    assert "8 Bag, 9 Ankle boot" in said
    assert not (tmp_path / "runs").exists()
