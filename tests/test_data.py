"""Splits, batches and the data module."""

import os
import re
from pathlib import Path

import pytest
import torch
from tiny_images import TinyDataModule

from fashion_cnn.data import Batch, FashionMNISTDataModule, InMemoryDataset, batch_loader
from fashion_cnn.data.splits import stratified_order
from fashion_cnn.errors import UserError

SETTINGS = {"mean": [0.5], "std": [0.25], "val_size": 32, "batch_size": 16, "eval_batch_size": 20}


def test_prefixes_of_a_stratified_order_keep_class_proportions():
    targets = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    order = stratified_order(targets, seed=0)
    assert order.sort().values.equal(torch.arange(1000))
    for size in (10, 100, 550):
        counts = targets[order[:size]].bincount(minlength=3)
        assert (counts - torch.tensor([0.6, 0.3, 0.1]) * size).abs().max() <= 1


def test_a_stratified_order_depends_on_its_seed():
    targets = torch.arange(100) % 10
    assert stratified_order(targets, 0).equal(stratified_order(targets, 0))
    assert not stratified_order(targets, 0).equal(stratified_order(targets, 1))


def test_fashion_mnist_splits_are_stratified_disjoint_and_complete(fashion_mnist_root):
    data = FashionMNISTDataModule(root=fashion_mnist_root)
    data.setup()
    assert (len(data.train_split), len(data.val_split), len(data.test_split)) == (55_000, 5_000, 10_000)
    assert data.val_split.targets.bincount().tolist() == [500] * 10
    assert data.train_probe.targets.bincount().tolist() == [500] * 10
    members = torch.cat([data.train_split.indices, data.val_split.indices])
    assert members.sort().values.equal(torch.arange(60_000))
    assert set(data.train_probe.indices.tolist()) <= set(data.train_split.indices.tolist())
    normalised = data.normalise(data.train_split.images)
    assert abs(normalised.mean()) < 0.01
    assert abs(normalised.std() - 1) < 0.01


def test_training_fractions_are_nested_and_keep_the_validation_split():
    members = []
    for fraction in (0.25, 0.5):
        data = TinyDataModule(**SETTINGS, train_fraction=fraction)
        data.setup("fit")
        members.append((set(data.train_split.indices.tolist()), data.val_split.indices.tolist()))
    (small, val), (large, other_val) = members
    assert len(small) == 32
    assert small < large
    assert val == other_val


def test_folds_are_stratified_and_divide_the_images_exactly(fashion_mnist_root):
    validated = []
    for fold in range(7):
        data = FashionMNISTDataModule(root=fashion_mnist_root, folds=7, fold=fold, probe_size=100)
        data.setup("fit")
        train, val = data.train_split.indices, data.val_split.indices
        assert data.val_size == len(val)
        assert torch.cat([train, val]).sort().values.equal(torch.arange(60_000))
        counts = data.val_split.targets.bincount()
        assert counts.max() - counts.min() <= 2
        validated.append(val)
    assert torch.cat(validated).sort().values.equal(torch.arange(60_000))


def test_subsets_are_stratified_and_independent_between_seeds():
    members = {}
    for seed in (0, 1):
        data = TinyDataModule(**SETTINGS, subset_fraction=0.5, subset_seed=seed)
        data.setup("fit")
        everything = TinyDataModule(**SETTINGS)
        everything.setup("fit")
        assert data.val_split.indices.equal(everything.val_split.indices)
        members[seed] = set(data.train_split.indices.tolist())
        assert members[seed] < set(everything.train_split.indices.tolist())
        assert len(members[seed]) == len(everything.train_split) // 2
        halved = TinyDataModule(**SETTINGS, subset_fraction=0.5, subset_seed=seed, train_fraction=0.5)
        halved.setup("fit")
        assert set(halved.train_split.indices.tolist()) < members[seed]
    assert 0 < len(members[0] & members[1]) < len(members[0])


def test_subsets_in_pairs_are_stratified_and_complementary():
    halves = []
    for seed in range(4):
        data = TinyDataModule(**SETTINGS | {"val_size": 0}, subset_fraction=0.5, subset_seed=seed, subset_pairs=True)
        data.setup("fit")
        assert data.train_split.targets.bincount().tolist() == [20] * 4
        assert data.train_split.targets[:40].bincount().tolist() == [10] * 4, "a prefix is stratified, too"
        halves.append(set(data.train_split.indices.tolist()))
    assert halves[0] | halves[1] == halves[2] | halves[3] == set(range(160))
    assert not halves[0] & halves[1]
    assert 0 < len(halves[0] & halves[2]) < 80


def corrected(folder, rows, option="exclude", **settings):
    file = folder / f"{option}.csv"
    file.write_text("\n".join(rows) + "\n")
    data = TinyDataModule(**SETTINGS | settings, **{option: str(file)})
    data.setup("fit")
    return data


def test_excluded_images_are_not_trained_on_and_the_splits_stay(tmp_path):
    plain = TinyDataModule(**SETTINGS)
    plain.setup("fit")
    val = plain.val_split.indices[:2].tolist()
    train = plain.train_split.indices[:3].tolist()
    data = corrected(tmp_path, ["label,index", *(f"x,{position}" for position in [*val, *train])])
    assert data.train_split.indices.tolist() == [i for i in plain.train_split.indices.tolist() if i not in train]
    assert data.val_split.indices.equal(plain.val_split.indices), "validation images stay"
    assert len(data.corrections["exclude"]) == 16


def test_new_labels_change_training_images_alone(tmp_path):
    plain = TinyDataModule(**SETTINGS)
    plain.setup("fit")
    val, train = plain.val_split.indices[0].item(), plain.train_split.indices[0].item()
    data = corrected(tmp_path, [f"{train},bottom", f"{val},3"], "relabel")
    assert data.train_split.targets[0] == data.train_probe.targets[0] == 3
    assert data.train_split.targets[1:].equal(plain.train_split.targets[1:])
    assert data.train_split.indices.equal(plain.train_split.indices)
    assert data.val_split.targets.equal(plain.val_split.targets)
    renumbered = corrected(tmp_path, [f"{train},bottom"], "relabel", left_out=["top", "middle"], probe_size=10)
    place = (renumbered.train_split.indices == train).nonzero()
    assert renumbered.class_names == ["low", "bottom"]
    assert train % 4 < 2 or renumbered.train_split.targets[place] == 1


@pytest.mark.parametrize(
    ("rows", "option", "message"),
    [
        (["index", "160"], "exclude", "line 2: there is no image 160: positions are 0 to 159"),
        (["3", "-1"], "exclude", "line 2: -1 is no position: give 0 to 159"),
        (["3", "4", "3"], "exclude", "line 3: image 3 is in line 1 too: give it once"),
        (["rank,label", "1,0"], "exclude", "has no column index: it has rank, label"),
        (["index"], "exclude", "names no image"),
        ([str(position) for position in range(160)], "exclude", "leaves no image to train on"),
        ([str(position) for position in range(0, 160, 4)], "exclude", "leaves no training image of the class top"),
        (["3,sock"], "relabel", "line 1: sock is no class: give a number or a name of 0 top"),
        (["3,4"], "relabel", "line 1: 4 is no class"),
        (["3"], "relabel", "line 1: 3 has no label"),
        (["9" * 5000], "exclude", f"line 1: there is no image {'9' * 40}…: positions are 0 to 159"),
        (["3," + "9" * 5000], "relabel", f"line 1: {'9' * 40}… is no class"),
        (["index", *["3"] * 161], "exclude", "has more rows than there are images, 160: give each image once"),
    ],
)
def test_mistakes_in_corrections_are_one_message(rows, option, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        corrected(tmp_path, rows, option)


def test_corrections_name_no_test_image_and_no_missing_or_changed_file(tmp_path):
    with pytest.raises(UserError, match=r"data.exclude: .*no.csv cannot be read \(No such file"):
        TinyDataModule(**SETTINGS, exclude=str(tmp_path / "no.csv")).setup("fit")

    class WithTest(TinyDataModule):
        train_size = 150

        def load(self, *, train):
            self.train_size, size = 160, self.train_size
            loaded = super().load(train=True)
            self.train_size = size
            return loaded

        def train_positions(self, targets):
            return torch.arange(150)

    (tmp_path / "test.csv").write_text("155\n")
    with pytest.raises(UserError, match="image 155 is a test image"):
        WithTest(**SETTINGS | {"val_size": 0}, exclude=str(tmp_path / "test.csv")).setup("fit")
    before = corrected(tmp_path, ["3"]).corrections["exclude"]
    assert corrected(tmp_path, ["3"], exclude_sha256=before).corrections == {"exclude": before}
    with pytest.raises(UserError, match="has changed since the training began"):
        corrected(tmp_path, ["3", "4"], exclude_sha256=before)


@pytest.mark.parametrize("option", ["exclude", "relabel"])
def test_a_correction_is_a_regular_file_that_is_read_once(option, tmp_path, monkeypatch):
    reads = []
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: reads.append(path.name) or opened(path, *a, **k))
    train = TinyDataModule(**SETTINGS)
    train.setup("fit")
    corrected(tmp_path, [f"{train.train_split.indices[0]},0"], option)
    assert reads == [f"{option}.csv"] * 2, "written, and read once"
    os.mkfifo(tmp_path / "pipe.csv")
    data = TinyDataModule(**SETTINGS, **{option: str(tmp_path / "pipe.csv")})
    with pytest.raises(UserError, match=rf"data\.{option}: .*pipe.csv cannot be read \(it is not a regular file\)"):
        data.setup("fit")
    with Path(tmp_path / "large.csv").open("w") as file:
        file.truncate(100_000_001)
    with pytest.raises(UserError, match=rf"data\.{option}: .*large.csv cannot be read \(it is larger than 100 MB\)"):
        TinyDataModule(**SETTINGS, **{option: str(tmp_path / "large.csv")}).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"subset_pairs": True, "subset_fraction": 0.3},
            "data.subset_pairs=true makes complementary halves, which data.subset_fraction=0.3 is not",
        ),
        ({"folds": 1}, "data.folds=1 is not possible: give 2 or more"),
        ({"folds": 3, "fold": 3}, "data.fold=3 is not possible with data.folds=3: give 0 to 2"),
        ({"fold": 1}, "data.fold=1 is not possible with data.folds=null: give data.folds too"),
        ({"subset_fraction": 0}, "data.subset_fraction=0 is not a fraction"),
        ({"subset_fraction": 1.5}, "data.subset_fraction=1.5 is not a fraction"),
        ({"subset_fraction": 0.001}, "data.subset_fraction=0.001 of 128 images leaves fewer than one per class"),
    ],
)
def test_impossible_folds_and_subsets_are_refused(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        TinyDataModule(**SETTINGS, **settings)


def test_a_batch_holds_the_positions_of_its_images_in_the_data_set():
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1)
    dataset = InMemoryDataset(images, torch.arange(20) % 3, members=torch.tensor([5, 7, 11]))
    batch = dataset.__getitems__([2, 0])
    assert isinstance(batch, Batch)
    assert batch.images.flatten().tolist() == [11, 5]
    assert batch.indices.tolist() == [11, 5]
    assert batch.targets.tolist() == [2, 2]


def test_training_batches_depend_on_seed_and_epoch_only():
    dataset = InMemoryDataset(torch.zeros(50, 1, 1, 1), torch.zeros(50), torch.arange(50))

    def order(seed, epoch, global_seed):
        torch.manual_seed(global_seed)
        loader = batch_loader(dataset, 8, shuffle_seed=seed)
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch.indices for batch in loader]).tolist()

    assert order(0, 3, global_seed=1) == order(0, 3, global_seed=2)
    assert order(0, 3, 1) != order(0, 4, 1)
    assert order(0, 3, 1) != order(1, 3, 1)
    assert len(order(0, 3, 1)) == 48


def test_reading_a_loader_leaves_the_global_random_state_alone():
    dataset = InMemoryDataset(torch.zeros(50, 1, 1, 1), torch.zeros(50), torch.arange(50))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(batch_loader(dataset, 8, shuffle_seed=0))
    assert torch.rand(1) == expected


def test_augmentation_acts_on_training_batches_only():
    from types import SimpleNamespace

    data = TinyDataModule(**SETTINGS, augmentation={"invert": lambda images: 255 - images, "off": None})
    images = torch.full((2, 1, 20, 20), 255, dtype=torch.uint8)
    batch = Batch(images, torch.zeros(2), torch.zeros(2))
    module = SimpleNamespace(dtype=torch.float32)
    data.trainer = SimpleNamespace(training=True, lightning_module=module)
    assert torch.allclose(data.on_after_batch_transfer(batch, 0).images, torch.tensor(-2.0))
    data.trainer = SimpleNamespace(training=False, lightning_module=module)
    assert torch.allclose(data.on_after_batch_transfer(batch, 0).images, torch.tensor(2.0))


def test_without_validation_all_images_are_trained_on():
    data = TinyDataModule(**{**SETTINGS, "val_size": 0})
    data.setup("fit")
    assert len(data.train_split) == 160
    assert data.val_dataloader() == {}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("val_size", 160),
        ("val_size", -1),
        ("val_size", 3),
        ("train_fraction", 0),
        ("train_fraction", 1.5),
        ("train_fraction", 0.001),
        ("batch_size", 0),
        ("eval_batch_size", -5),
        ("eval_batch_size", True),
        ("eval_batch_size", 1.5),
        ("eval_batch_size", 2**70),
        ("batch_size", "many"),
        ("std", [0.0]),
    ],
)
def test_invalid_settings_raise_with_their_name(setting, value):
    with pytest.raises(UserError, match=rf"data\.{setting}"):
        TinyDataModule(**{**SETTINGS, setting: value})


@pytest.mark.parametrize("option", ["train_fraction", "subset_fraction"])
def test_a_fraction_without_a_rare_class_raises_with_the_smallest_that_works(option):
    class Rare(TinyDataModule):
        def load(self, *, train):
            images, targets = super().load(train=train)
            return images, torch.where(torch.arange(len(targets)) < 3, 0, 1 + torch.arange(len(targets)) % 3)

    settings = {"mean": [0.3], "std": [0.3], "val_size": 0}
    message = rf"data\.{option}=0\.05 leaves no image of the class top to train on: give at least 0\.\d+"
    with pytest.raises(UserError, match=message) as error:
        Rare(**settings, **{option: 0.05}).check_classes()
    fraction = float(str(error.value).split()[-1].rstrip("."))
    data = Rare(**settings, **{option: fraction})
    data.check_classes()
    assert (data.train_split.targets == 0).sum() == 1


@pytest.mark.parametrize(("fraction", "count"), [(0.25, 32), (0.04, 5), (1.0, 128)])
def test_a_training_fraction_is_of_what_the_validation_leaves(fraction, count):
    data = TinyDataModule(**SETTINGS, train_fraction=fraction)
    data.setup("fit")
    assert len(data.train_split) == count


def test_a_training_fraction_of_fewer_images_than_classes_is_refused():
    with pytest.raises(UserError, match=r"of 128 images leaves fewer than one per class: give at least 0\.031"):
        TinyDataModule(**SETTINGS, train_fraction=0.02).setup("fit")
