"""`data=image_folder`: the user's own pictures, decoded once, split, trained on and evaluated."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fashion_cnn.cli.main import compose
from fashion_cnn.data import ImageFolderDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.evaluate import evaluate_runs
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.pictures import decode
from fashion_cnn.runs import Run
from fashion_cnn.train import main, train

NETWORK = ["model=tiny", "model.network.stem=[8]", "model.network.widths=[8,16]", "model.network.depths=[1,1]"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fashion_cnn"


def draw(path, seed, *, bar=0, mode="RGB", size=(40, 30)):
    """A picture of noise, a quarter of which is bright."""
    pixels = np.random.default_rng(seed).integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
    rows = size[1] // 4
    pixels[bar * rows : (bar + 1) * rows, :, bar % 3] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """20 pictures each of three classes."""
    root = tmp_path / "my pictures"
    for bar, name in enumerate(("cats & dogs", "Bäume", "logo=1")):
        for number in range(20):
            draw(root / name / f"{number:02}.png", 100 * bar + number, bar=bar)
    return root


def module(root, **settings):
    data = ImageFolderDataModule(root=root, **settings)
    data.setup()
    return data


def test_splits_are_disjoint_stratified_and_repeatable(folder):
    data = module(folder, val_share=0.2, test_share=0.25)
    splits = (data.train_split, data.val_split, data.test_split)
    assert [len(split) for split in splits] == [33, 12, 15]
    assert sorted(torch.cat([split.indices for split in splits]).tolist()) == list(range(60))
    assert all(split.targets.bincount().tolist() == [len(split) // 3] * 3 for split in splits)
    assert data.class_names == ["Bäume", "cats & dogs", "logo=1"]
    again, other = module(folder, val_share=0.2, test_share=0.25), module(folder, val_share=0.2, split_seed=1)
    assert again.test_split.indices.tolist() == data.test_split.indices.tolist()
    assert other.test_split.indices.tolist() != data.test_split.indices.tolist()


def test_pictures_keep_their_size_and_colours(folder):
    data = module(folder)
    assert data.image_shape == (3, 40, 40)
    # 40 x 30 in a frame of 40 x 40: background above and below, and unchanged pixels.
    picture = np.asarray(Image.open(folder / "Bäume" / "00.png"))
    image = data.train_split.images_at(torch.tensor([0]))[0]
    assert np.array_equal(image[:, 5:35].permute(1, 2, 0).numpy(), picture)
    images = data.train_split.images.double() / 255
    assert data.pixel_mean.flatten().tolist() == pytest.approx((images.mean(dim=(0, 2, 3)) * 255).tolist(), abs=0.02)
    normalised = data.normalise(data.train_split.images)
    assert normalised.std(dim=(0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=0.01)


def test_size_and_channels_are_detected_unless_set(tmp_path):
    for bar, name in enumerate("ab"):
        for number in range(5):
            draw(tmp_path / "grey" / name / f"{number}.png", number, bar=bar, mode="L", size=(300, 200))
    assert module(tmp_path / "grey").image_shape == (1, 64, 64), "limited to what a small network takes"
    assert module(tmp_path / "grey", image_size=20, channels=3).image_shape == (3, 20, 20)


def test_folders_train_val_and_test_define_the_splits(tmp_path):
    root = tmp_path / "split"
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for bar, name in enumerate("ab"):
            for number in range(count):
                draw(root / split / name / f"{number}.jpg", 100 * len(split) + number, bar=bar)
    data = module(root)
    assert [len(split) for split in (data.train_split, data.val_split, data.test_split)] == [12, 4, 6]
    (root / "val").rename(root / ".val")
    data = module(root, val_share=0.5)
    assert [len(split) for split in (data.train_split, data.val_split, data.test_split)] == [6, 6, 6]


def test_pictures_of_one_group_stay_in_one_split(folder):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    lines = [f'"{name}",{name.split("/")[0]}-{int(name[-6:-4]) // 5}' for name in names]
    (folder / "groups.csv").write_text("file,group\n" + "\n".join(lines) + "\n")
    data = module(folder, val_share=0.25, test_share=0.25)
    group = torch.tensor([int(Path(name).stem) // 5 + 10 * "Bcl".index(name[0]) for name in names])
    sets = [set(group[split.indices].tolist()) for split in (data.train_split, data.val_split, data.test_split)]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert [len(groups) for groups in sets] == [6, 3, 3]


def test_left_out_classes_are_missing_in_all_splits(tmp_path):
    root = tmp_path / "split"
    for split, count in (("train", 8), ("val", 3), ("test", 2)):
        for bar, name in enumerate("abc"):
            for number in range(count):
                draw(root / split / name / f"{number}.png", 100 * bar + 10 * count + number, bar=bar)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    ordered = [path for split in ("train", "val", "test") for path in paths if path.startswith(split)]
    data = module(root, left_out=["c"])
    parts = {"train": data.train_split, "val": data.val_split, "test": data.test_split}
    for name, split in parts.items():
        assert {ordered[index].split("/")[0] for index in split.indices.tolist()} == {name}
    assert [len(split) for split in parts.values()] == [16, 6, 4]


def test_copies_of_a_picture_stay_in_one_split(folder):
    for number in range(20):
        copy = (folder / "Bäume" / f"{number:02}.png").read_bytes()
        (folder / "Bäume" / f"copy {number:02}.png").write_bytes(copy)
    data = module(folder, val_share=0.25, test_share=0.25)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    names.sort(key=lambda name: ["B", "c", "l"].index(name[0]))
    pictures = [name.replace("copy ", "") for name in names]
    sets = [
        {pictures[index] for index in split.indices.tolist()}
        for split in (data.train_split, data.val_split, data.test_split)
    ]
    assert len(set.union(*sets)) == sum(map(len, sets)) == 60


def test_a_group_named_like_a_picture_includes_copies(folder):
    names = [f"Bäume/{number:02}.png" for number in range(20)]
    lines = [f"{name},Bäume/{int(name[-6:-4]) // 2 * 2:02}.png" for name in names]
    (folder / "groups.csv").write_text("file,group\n" + "\n".join(lines) + "\n")
    # A copy of the first picture of a pair, without a group.
    (folder / "Bäume" / "copy.png").write_bytes((folder / "Bäume" / "06.png").read_bytes())
    data = module(folder, val_share=0.25, test_share=0.25)
    pair = [number // 2 for number in range(20)] + [3]
    parts = [
        {pair[index] for index in split.indices.tolist() if index < 21}
        for split in (data.train_split, data.val_split, data.test_split)
    ]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 10


def test_a_group_in_two_splits_is_reported(tmp_path, capsys):
    for split in ("train", "test"):
        for bar, name in enumerate("ab"):
            for number in range(4):
                draw(tmp_path / "x" / split / name / f"{number}.png", number + 10 * bar + 20 * len(split), bar=bar)
    (tmp_path / "x" / "groups.csv").write_text("file,group\ntrain/a/0.png,shoe\ntest/a/3.png,shoe\n")
    module(tmp_path / "x", val_share=0)
    assert "train, val and test: 1 picture:\n  train/a/0.png = test/a/3.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,group\nnosuch.png,1\n", "names 1 files that are no pictures of a class in .*, such as nosuch.png"),
        (b"name,group\n", "has the columns name, group: it needs file and group"),
        ("file,group\nBäume/00.png,1\n".encode("latin-1"), "is no UTF-8"),
    ],
)
def test_invalid_groups_raise(folder, content, message):
    (folder / "groups.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        ImageFolderDataModule(root=folder)
    (folder / "groups.csv").write_text("file,group\nBäume/00.png,1\n", encoding="utf-8-sig")
    assert len(module(folder).train_split)


def test_unreadable_pictures_are_reported_and_left_out(folder, capsys):
    (folder / "Bäume" / "00.png").write_text("no picture")
    (folder / "Bäume" / "notes.txt").write_text("no picture by its name either")
    data = module(folder)
    assert data.train_size + len(data.test_split) == 59
    err = capsys.readouterr().err
    assert "1 of 60 files" in err
    assert "Bäume/00.png: is not a picture: it holds text" in err
    assert 0 not in torch.cat([data.train_split.indices, data.val_split.indices, data.test_split.indices]).tolist()


def test_a_named_pipe_and_a_device_are_reported_and_left_out(folder, capsys):
    for number, make in enumerate((os.mkfifo, lambda path: path.symlink_to("/dev/zero"))):
        (folder / "Bäume" / f"{number:02}.png").unlink()
        make(folder / "Bäume" / f"{number:02}.png")
    data = module(folder)
    assert data.train_size + len(data.test_split) == 58
    err = capsys.readouterr().err
    assert "Bäume/00.png: is not a regular file" in err
    assert "Bäume/01.png: is not a regular file" in err
    groups = folder / "groups.csv"
    groups.write_text(f"file,group\n{'x' * 200_000},a\n")
    with pytest.raises(UserError, match=r"groups\.csv is no table \(field larger"):
        module(folder)
    groups.write_text("group,file\na\n")
    assert module(folder).train_size == data.train_size, "a row without a file is empty"
    groups.unlink()
    os.mkfifo(groups)
    with pytest.raises(UserError, match=r"groups\.csv is not a regular file"):
        module(folder)


def test_linked_pictures_and_classes_are_read(folder, tmp_path):
    root = tmp_path / "links"
    root.mkdir()
    (root / "linked class").symlink_to(folder / "Bäume")
    (root / "linked files").mkdir()
    for path in (folder / "logo=1").iterdir():
        (root / "linked files" / path.name).symlink_to(path)
    data = module(root)
    assert data.train_size + len(data.test_split) == 40


def test_more_than_a_few_unreadable_pictures_are_listed_in_a_file(folder, cache, capsys):
    for number in range(12):
        (folder / "Bäume" / f"{number:02}.png").write_text("no picture")
    module(folder)
    message = capsys.readouterr().err
    (listing,) = cache.glob("*-left-out.txt")
    assert f"… and 2 more, all in {listing}" in message
    assert listing.read_text().count("holds text") == 12


def test_a_class_without_readable_training_pictures_raises(folder):
    for path in (folder / "Bäume").iterdir():
        path.write_text("no picture")
    with pytest.raises(UserError, match=r"No training picture of the class Bäume .* can be read \(Bäume/00.png: is no"):
        module(folder)


def test_a_temporarily_unreadable_picture_is_read_the_next_time(folder, monkeypatch, capsys):
    hidden, read_bytes, opened = folder / "Bäume" / "00.png", Path.read_bytes, Image.open

    def refusing(call):
        def refuse(path, *args, **kw):
            if path == hidden:
                raise PermissionError(13, "Permission denied")
            return call(path, *args, **kw)

        return refuse

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refusing(read_bytes))
        patched.setattr(Image, "open", refusing(opened))
        module(folder)
        assert "Bäume/00.png: cannot be read (Permission denied)" in capsys.readouterr().err
    data = module(folder)
    assert data.train_size + len(data.test_split) == 60
    assert capsys.readouterr().err == ""


def test_a_damaged_cache_is_rebuilt(folder, cache):
    images = module(folder).train_split.images
    (pixels,) = cache.glob("*.npy")
    for half in (pixels.read_bytes()[:5000], b""):
        pixels.write_bytes(half)
        assert torch.equal(module(folder).train_split.images, images)


def test_the_same_picture_in_two_splits_is_reported(tmp_path, capsys):
    for split in ("train", "test"):
        for bar, name in enumerate("ab"):
            for number in range(4):
                draw(tmp_path / "x" / split / name / f"{number}.png", number + 10 * (split == "test"), bar=bar)
    copy = (tmp_path / "x" / "train" / "a" / "1.png").read_bytes()
    (tmp_path / "x" / "test" / "a" / "copy.png").write_bytes(copy)
    module(tmp_path / "x", val_share=0)
    assert "In more than one of train, val and test: 1 picture:\n  train/a/1.png = test/a/copy.png" in (
        capsys.readouterr().err
    )


def test_the_same_picture_in_two_classes_is_reported(tmp_path, capsys):
    for bar, name in enumerate("ab"):
        for number in range(6):
            draw(tmp_path / "x" / name / f"{number}.png", number, bar=bar)
    (tmp_path / "x" / "b" / "copy.png").write_bytes((tmp_path / "x" / "a" / "1.png").read_bytes())
    module(tmp_path / "x")
    message = capsys.readouterr().err
    assert "In more than one class: 1 picture:\n  a/1.png = b/copy.png" in message
    assert "train, val and test" not in message


def test_the_cache_is_used_until_a_picture_changes(folder, monkeypatch):
    first = module(folder)
    decodes = []
    decode = __import__("fashion_cnn.pictures", fromlist=["decode"]).decode
    monkeypatch.setattr(
        "fashion_cnn.pictures.files.decode", lambda *args, **kw: decodes.append(args) or decode(*args, **kw)
    )
    reads = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read_bytes(path))
    second = module(folder)
    assert (decodes, reads) == ([], [])
    assert torch.equal(second.train_split.images, first.train_split.images)
    time.sleep(0.01)
    draw(folder / "Bäume" / "03.png", 999, bar=2)
    third = module(folder)
    assert len(reads) == 1, "only the changed picture is read"
    assert len(decodes) == 60
    place = torch.tensor([3])
    assert not torch.equal(third.train_split.images_at(place), first.train_split.images_at(place))


def test_an_interrupted_decoding_leaves_no_partial_cache(folder, cache, monkeypatch):
    write_atomically = "fashion_cnn.data.picture_cache.write_atomically"
    written = []

    def stop(path, text):
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt
        path.write_text(text)

    monkeypatch.setattr(write_atomically, stop)
    with pytest.raises(KeyboardInterrupt):
        module(folder)
    assert not list(cache.glob("*.npy")) + list(cache.glob("*.partial"))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    assert len(module(folder).train_split) > 0


def old_entry(cache, name, age, size=1000):
    """Pixels in the cache that were used `age` seconds ago."""
    for suffix, content in (("npy", b"0" * (size - 2)), ("json", b"{}")):
        file = cache / f"{name * 32}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (time.time() - age,) * 2)


def test_the_least_recently_used_pixels_are_removed_above_the_limit(folder, cache):
    for age, name in ((300, "a"), (100, "b"), (200, "c")):
        old_entry(cache, name, age)
    (cache / "notes.txt").write_text("of someone else")
    (cache / "deadbeef.npy").write_text("of someone else")
    module(folder)
    assert all((cache / f"{name * 32}.npy").exists() for name in "abc"), "the default limit is larger"
    kept = sum(file.stat().st_size for file in cache.iterdir() if len(file.stem) in (16, 32)) - 3000
    draw(folder / "logo=1" / "00.png", 1234)
    # The previous and the new pixels are in use.
    module(folder, cache_gb=(kept + 60 * 3 * 40**2 + 2000) / 1e9)
    assert [name for name in "abc" if (cache / f"{name * 32}.npy").exists()] == ["b"]
    assert [name for name in "abc" if (cache / f"{name * 32}.json").exists()] == ["b"]
    assert (cache / "notes.txt").exists()
    assert (cache / "deadbeef.npy").exists()


@pytest.mark.slow
def test_pixels_in_use_are_never_removed(folder, cache, command):
    from fashion_cnn.cache import main as cache_main

    data = module(folder, cache_gb=0)
    (pixels,) = cache.glob("*.npy")
    old_entry(cache, "a", 100)
    status, out, _ = command(cache_main)
    assert status == 0
    assert str(folder) in out
    assert "unknown" in out
    status, out, _ = command(cache_main, "remove_all=true")
    assert status == 0
    assert f"{cache}: 1 cache" in out
    assert list(cache.glob("*.npy")) == [pixels]
    assert len(data.train_split.images)
    code = "import sys; from fashion_cnn.cache import main; sys.argv = ['cache', 'remove_all=true']; main()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert list(cache.glob("*.npy")) == [pixels], "another process sees the lock"
    assert command(cache_main, "limit_gb=-1")[0] == 2


def test_the_cache_is_listed_and_cleared(cache, command):
    from fashion_cnn.cache import main as cache_main

    assert "holds no decoded pictures" in command(cache_main)[1]
    for age, name in ((300, "a"), (100, "b")):
        old_entry(cache, name, age, size=10**6)
    status, out, _ = command(cache_main, "limit_gb=0.0015")
    assert status == 0
    assert "Removed 1 cache, 1.0 MB." in out
    assert (cache / f"{'b' * 32}.npy").exists()
    assert "Removed 1 cache, 1.0 MB." in command(cache_main, "remove_all=true")[1]
    assert not list(cache.iterdir())


def test_pixels_above_the_memory_limit_are_memory_mapped(folder, cache):
    def is_mapped():
        lines = Path("/proc/self/maps").read_text().splitlines()
        return any(str(cache) in line and line.endswith(".npy") for line in lines)

    in_memory = module(folder)
    assert not is_mapped()
    mapped = module(folder, in_memory_share=0)
    assert is_mapped()
    places = torch.tensor([5, 17, 40])
    assert torch.equal(in_memory.train_split.images_at(places), mapped.train_split.images_at(places))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 4}, "data.channels=4"),
        ({"image_size": 0}, "data.image_size=0"),
        ({"val_share": 1}, "data.val_share=1"),
        ({"folds": 5}, "data.folds=5 is not possible with an image folder"),
        ({"test_share": -0.1}, "data.test_share=-0.1"),
        ({"root": None}, "data.root is missing"),
        ({"root": "/nowhere"}, "data.root=/nowhere is no folder"),
    ],
)
def test_invalid_settings_raise(folder, settings, message):
    with pytest.raises(UserError, match=message):
        ImageFolderDataModule(**{"root": folder, **settings})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/1.png"], "holds pictures of 1 classes: a"),
        ([], "holds pictures of 0 classes: two or more are needed, each in a sub-folder."),
        (["1.png"], "each in a sub-folder; pictures outside sub-folders have no class"),
        (["train/a/1.png", "other/b/1.png"], "holds other and a folder train"),
        (["val/a/1.png", "test/b/1.png"], "holds test, val and no folder train"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "no picture of the class c"),
        (
            ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png"],
            "1 validation pictures for 2 classes: give a",
        ),
    ],
)
def test_folders_that_cannot_be_trained_on_raise(tmp_path, files, message):
    root = tmp_path / "root"
    root.mkdir()
    for number, name in enumerate(files):
        draw(root / name, number)
    with pytest.raises(UserError, match=message):
        ImageFolderDataModule(root=root)


@pytest.mark.training
def test_a_run_without_test_pictures_is_evaluated_on_validation_only(folder, tmp_path):
    overrides = [
        f"data.root='{folder}'",
        f"runs_dir='{tmp_path / 'runs'}'",
        "trainer.max_epochs=1",
        "data.test_share=0",
    ]
    run = Run(Path(train(compose(overrides=["data=image_folder", *NETWORK, *overrides]))["run"]))
    assert evaluate_runs([run], "val").metrics["val/accuracy"] >= 0
    with pytest.raises(UserError, match="has no test set"):
        evaluate_runs([run], "test")


@pytest.mark.training
def test_a_run_is_evaluated_again_on_the_same_folder_and_predicts_without_it(folder, tmp_path):
    overrides = [
        f"data.root='{folder}'",
        f"runs_dir='{tmp_path / 'runs'}'",
        "trainer.max_epochs=4",
        "data.batch_size=8",
    ]
    results = train(compose(overrides=["data=image_folder", *NETWORK, *overrides]))
    assert results["test/accuracy"] > 0.6, "chance is a third"
    run = Run(Path(results["run"]))
    evaluation = evaluate_runs([run], "test")
    assert evaluation.metrics["test/accuracy"] == results["test/accuracy"]
    folder.rename(tmp_path / "moved")
    network = TrainedNetwork(run)
    assert network.class_names == ("Bäume", "cats & dogs", "logo=1")
    assert network.preparation.image_shape == (3, 40, 40)
    assert not network.preparation.cut_out
    with pytest.raises(UserError, match="is no folder"):
        evaluate_runs([run], "test")
    assert evaluate_runs([run], "test", data_root=str(tmp_path / "moved")).metrics == evaluation.metrics
    # One picture with other content; number, classes and size are the same.
    draw(tmp_path / "moved" / "Bäume" / "00.png", 12345)
    with pytest.raises(UserError, match="holds other pictures than before"):
        evaluate_runs([run], "test", data_root=str(tmp_path / "moved"))


@pytest.mark.slow
def test_transparency_shows_the_same_background_in_training_and_prediction(tmp_path):
    for bar, name in enumerate("ab"):
        for number in range(6):
            draw(tmp_path / "clear" / name / f"{number}.png", number, bar=bar, mode="RGBA", size=(32, 32))
    path = tmp_path / "clear" / "a" / "0.png"
    with Image.open(path) as picture:
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(path)
    places = [f"data.root='{tmp_path / 'clear'}'", f"runs_dir='{tmp_path / 'runs'}'", "data.background=40"]
    config = compose(overrides=["data=image_folder", *NETWORK, *places, "trainer.max_epochs=1", "data.batch_size=4"])
    network = TrainedNetwork(Run(Path(train(config)["run"])))
    trained_on = module(tmp_path / "clear", background=40).train_split.images_at(torch.tensor([0]))[0]
    assert torch.equal(network.preparation(decode(path)), trained_on)
    assert not torch.equal(network.preparation(decode(path)), module(tmp_path / "clear").load(train=True)[0][0])


def test_the_command_reports_the_missing_root(command):
    status, _, err = command(main, "data=image_folder")
    assert status != 0
    assert "data.root is missing: give data.root=DIR" in err
    assert err.count("\n") == 1


def test_an_unwritable_cache_is_reported_in_one_line(command, folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    status, _, err = command(main, "data=image_folder", f"data.root='{folder}'")
    assert (status, err) == (1, f"error: Not a directory: {tmp_path}/file/fashion_cnn\n")


def test_a_folder_without_permission_raises(folder, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("Bäume"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(PermissionError):
        module(folder)


def test_detected_properties_are_json_serialisable(folder):
    assert json.loads(json.dumps(module(folder).detected)) == module(folder).detected


def test_balanced_draws_all_classes_equally_often(folder):
    for number in range(4, 20):
        (folder / "Bäume" / f"{number:02}.png").unlink()

    def drawn(**settings):
        data = module(folder, test_share=0, batch_size=7, **settings)
        counts = sum(
            torch.cat([batch.targets for batch in loader]).bincount(minlength=3)
            for loader in [data.train_dataloader()]
            for _ in range(100)
        )
        return (counts / counts.sum()).tolist()

    assert drawn()[0] < 0.1
    assert drawn(balanced=True) == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.slow
def test_without_test_pictures_results_have_no_test_accuracy(folder, tmp_path):
    overrides = ["data=image_folder", *NETWORK, f"data.root='{folder}'", f"runs_dir='{tmp_path / 'runs'}'"]
    results = train(compose(overrides=[*overrides, "data.test_share=0", "trainer.max_epochs=1", "data.batch_size=8"]))
    assert "test/accuracy" not in results
    assert 0 <= results["val/balanced_accuracy"] <= 1
