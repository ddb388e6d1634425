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


@pytest.mark.parametrize("value", ["[middle,bottom]", "[1,3]", "[3,middle,1]"])
def test_remaining_classes_are_renumbered_for_training(tiny, value):
    config = tiny(f"data.left_out={value}")
    data = build.data(config)
    assert list(data.class_names) == ["top", "low"]
    for split in splits_of(data):
        # The labels are 0, 1, 2, 3, 0, 1, …: the images at even positions remain.
        assert split.indices.remainder(2).eq(0).all()
        assert split.targets.equal(split.indices % 4 // 2)
    assert build.module(config, data)(data.normalise(data.val_split.images)).shape == (32, 2)


def test_left_out_test_images_keep_their_labels(tiny):
    data = build.data(tiny("data.left_out=[1]"))
    data.setup("test")
    assert (len(data.test_split), len(data.left_out_split)) == (30, 10)
    assert data.left_out_split.targets.tolist() == [1] * 10
    assert data.left_out_split.images.equal(data.load(train=False)[0][1::4])


def test_leaving_out_a_class_keeps_the_validation_images_of_the_others(tiny):
    whole, part = build.data(tiny("data.val_size=32")), build.data(tiny("data.val_size=24", "data.left_out=[top]"))
    assert part.val_split.targets.bincount().tolist() == [8, 8, 8]
    remaining_positions = whole.val_split.indices[whole.val_split.targets > 0]
    assert part.val_split.indices.sort().values.equal(remaining_positions.sort().values)


@pytest.mark.parametrize("left_out", ["data.left_out=[]", "data.left_out=null", None])
def test_nothing_left_out_changes_nothing(tiny, left_out):
    config = tiny(*[left_out] if left_out else [])
    if left_out is None:  # Like a run of an older version.
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


def test_fashion_mnist_splits_are_those_of_versions_without_the_option(fashion_mnist_root):
    data = FashionMNISTDataModule(root=fashion_mnist_root)
    data.setup("fit")
    checksums = [(split.indices[:5000] * torch.arange(1, 5001)).sum() for split in (data.train_split, data.val_split)]
    assert checksums == [382562061816, 376805012444]


def test_runs_that_leave_nothing_out_are_grouped_with_runs_without_the_option(tmp_path):
    for seed, data in enumerate([{"val_size": 5}, {"val_size": 5, "left_out": []}]):
        make_run(tmp_path / str(seed), [], seed, 0.9, data=data)
    (group,) = compare(list_runs(tmp_path)).groups
    assert len(group.results) == 2
    make_run(tmp_path / "other", [], 0, 0.9, data={"val_size": 5, "left_out": [8]})
    assert compare(list_runs(tmp_path)).factors == ("data.left_out",)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (["bag"], "data.left_out=bag is no class.*0 top, 1 middle"),
        ([4], "data.left_out=4 is no class"),
        ([-1], "data.left_out=-1 is no class"),
        ([0, 1, 2], r"data.left_out=\[0, 1, 2\] leaves 1 of the 4 classes"),
    ],
)
def test_unknown_classes_and_too_few_remaining_classes_raise(left_out, message):
    with pytest.raises(UserError, match=message):
        TinyDataModule(mean=[0.5], std=[0.25], val_size=32, left_out=left_out)


def test_a_validation_split_larger_than_the_remaining_classes_raises(tiny):
    with pytest.raises(UserError, match=r"data\.val_size=100 cannot be held out of 80 training images"):
        build.data(tiny("data.left_out=[0,1]", "data.val_size=100"))


def test_an_unknown_class_is_reported_before_a_run_directory_exists(command, tmp_path, fashion_mnist_root):
    places = [f"data.root={fashion_mnist_root}", f"runs_dir={tmp_path / 'runs'}"]
    status, _, err = command(main, "data.left_out=[Ankle boot,Bags]", *places)
    assert status == 1
    assert "data.left_out=Bags is no class" in err
    assert "8 Bag, 9 Ankle boot" in err
    assert not (tmp_path / "runs").exists()
