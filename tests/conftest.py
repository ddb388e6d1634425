"""Shared fixtures: tiny synthetic images, the real Fashion-MNIST, and commands in this process."""

import functools
import gc
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

# One compute thread per test process, set before torch is imported: several workers share the cores, and sums are
# computed in the same order with any number of workers.
os.environ["OMP_NUM_THREADS"] = "1"

# `nohup`, CI runners and a shell's `&` start processes with SIGINT ignored, which their children inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent
# This process and its children import this checkout, not an installed one, and the modules in tests/.
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
# Packages and modules whose classes a run may name, see fashion_cnn/runs/trust.py: runs of tests name classes of tests.
os.environ["FASHION_CNN_TRUST"] = ",".join(path.stem for path in (REPOSITORY / "tests").glob("t*.py"))
# The settings of the user who runs the tests have no effect.
os.environ["XDG_CONFIG_HOME"] = str(REPOSITORY / "tests" / "no_settings")
# Width of printed tables, which workers of pytest-xdist inherit from its terminal.
os.environ.pop("COLUMNS", None)
# Requests to this machine do not use a proxy.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"
# Seconds to wait for another process or thread before it counts as hung; long enough for slow machines.
PATIENCE = 1800
# The smallest complete training. callbacks=default adds the overfitting analysis with its plots, which takes four times
# as long: only tests of the analysis, or of resuming it, use it.
TINY_DATA = [
    "data._target_=tiny_images.TinyDataModule",
    "data.val_size=32",
    "data.batch_size=16",
    "data.eval_batch_size=20",
    "model=tiny",
    "model.network.stem=[8]",
    "model.network.widths=[8,16]",
    "model.network.depths=[1,1]",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "callbacks=essential",
]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let this process write files of at most `size` bytes: every write beyond fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Markers of tests that start servers, browsers or several processes.
_SEVERAL_PROCESSES = ("browser", "cluster", "processes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and put the longest first.

    pytest-xdist (`--dist worksteal`) gives each worker a consecutive part of this order, and a part of what another has
    left to a worker that has finished. So tests of one module mostly share a worker and its fixtures, and those that
    start servers, browsers or several processes, which come first, mostly run one after the other.
    """
    for item in items:
        if any(map(item.get_closest_marker, (*_SEVERAL_PROCESSES, "training"))):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: "fashion_mnist_root" not in getattr(item, "fixturenames", ()))
    items.sort(key=lambda item: not any(map(item.get_closest_marker, _SEVERAL_PROCESSES)))


def pytest_collection_finish() -> None:
    """Do once, or not at all, what each of the hundreds of small trainings would repeat.

    Garbage is collected less often: torch and the test modules are a million objects that stay, and each pass costs.
    Files need not outlast a power failure; plots are drawn with few pixels. The parsed files of conf/, Lightning's
    search for plugins among the installed packages, and the default config that the start of a training is compared
    with, are kept.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    os.fsync = lambda descriptor: None
    load, parsed = OmegaConf.load, {}

    def load_once(file: Any) -> Any:
        name = str(getattr(file, "name", file))
        if not name.startswith(f"{REPOSITORY / 'conf'}{os.sep}"):
            return load(file)
        if name not in parsed:
            parsed[name] = OmegaConf.to_container(load(file))
        return OmegaConf.create(parsed[name])

    OmegaConf.load = load_once
    if "lightning.pytorch" in sys.modules:
        from lightning.fabric.utilities import registry
        from matplotlib.figure import Figure

        from fashion_cnn.cli import console

        registry.entry_points = functools.cache(registry.entry_points)
        console.default_config = functools.cache(console.default_config)
        save = Figure.savefig
        Figure.savefig = lambda figure, *arguments, **settings: save(figure, *arguments, **{**settings, "dpi": 50})


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return a function that loads a script of scripts/ as a module."""

    # The scripts import modules in their own folder.
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")

    def load(name: str) -> Any:
        loader = SourceFileLoader(name, str(REPOSITORY / "scripts" / name))
        module = module_from_spec(spec_from_loader(name, loader))  # type: ignore[arg-type]
        # Dataclasses look up their own module.
        monkeypatch.setitem(sys.modules, name, module)
        loader.exec_module(module)
        return module

    return load


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that composes the config of a training on tiny synthetic images in the test's folder."""
    from fashion_cnn.cli.main import compose

    def build(*overrides: str) -> Any:
        return compose(overrides=[*TINY_DATA, f"runs_dir='{tmp_path / 'runs'}'", *overrides])

    return build


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """Return a function that runs a command's `main` and returns exit status, standard output and standard error."""

    def run(main: Callable[[], None], *arguments: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["fashion_cnn", *arguments])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    yield run
    GlobalHydra.instance().clear()


@pytest.fixture(scope="session")
def fashion_mnist_root() -> Path:
    """Folder of the real Fashion-MNIST, which scripts/test provides."""
    root = REPOSITORY / "data"
    if not (root / "FashionMNIST" / "raw").is_dir():
        pytest.skip("Fashion-MNIST is not in data/: scripts/test gets it")
    return root


@pytest.fixture
def picture_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Image folder of two classes with eight small pictures each, and a cache folder for it."""
    import numpy as np
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "pictures"
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(100 * label, 100 * label + 150, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def torchvision_root(tmp_path: Path) -> Path:
    """Small synthetic data sets in torchvision's layout of KMNIST and EMNIST."""
    import struct

    import numpy as np

    def write_idx(path: Path, array: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
        path.write_bytes(header + array.astype(np.uint8).tobytes())

    rng = np.random.default_rng(0)
    for split, name, count in (("train", "train", 94), ("t10k", "test", 47)):
        images = rng.integers(0, 255, (count, 28, 28))
        labels = np.arange(count)
        for folder, prefix, classes in (("KMNIST", split, 10), ("EMNIST", f"emnist-balanced-{name}", 47)):
            write_idx(tmp_path / folder / "raw" / f"{prefix}-images-idx3-ubyte", images)
            write_idx(tmp_path / folder / "raw" / f"{prefix}-labels-idx1-ubyte", labels % classes)
    return tmp_path


@pytest.fixture(scope="session")
def shop_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run on tiny synthetic images, with a catalogue of products with unusual names."""
    from tiny_shop import make_catalogue, train_run

    run = train_run(tmp_path_factory.mktemp("shop"))
    make_catalogue(run)
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of this machine, or Playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_api.sync_playwright() as playwright:
        try:
            # Chromium's sandbox does not work as root, which containers use.
            arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]} (scripts/test gets one)")
        yield browser
        browser.close()
