"""A small shop for the search tests: 60 products of tiny images, some with names that need escaping."""

import csv
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from conftest import TINY_DATA
from PIL import Image
from tiny_images import TinyDataModule

from fashion_cnn.cli.main import compose
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.retrieval.catalogue import Catalogue
from fashion_cnn.retrieval.indexing import index_products
from fashion_cnn.retrieval.tables import products_from_files
from fashion_cnn.runs import Run
from fashion_cnn.serve import build_app, create_server, open_socket
from fashion_cnn.train import train

CLASSES = TinyDataModule.class_names
ODD_IDS = ["a/b", "../../etc/passwd", 'it\'s & "5" = 100% #1?', "<b>x</b>", "日本 語"]
ODD_TITLE = "<script>alert(1)</script> {{ 7 * 7 }}"


def train_run(folder: Path) -> Run:
    # The default callbacks store validation predictions, which calibrate the probabilities.
    settings = [*TINY_DATA, "callbacks=default", f"runs_dir='{folder / 'runs'}'", "trainer.max_epochs=4"]
    results = train(compose(overrides=settings))
    return Run(Path(results["run"]))


def rows() -> list[dict[str, object]]:
    """Return the table of the shop's products."""
    products: list[dict[str, object]] = []
    for number in range(60):
        kind, colour = CLASSES[number % 4], ("red", "green", "blue")[number % 3]
        product = {"id": f"p{number:02}", "title": f"{colour} {kind} number {number}", "category": kind}
        product |= {"price": 10 + number, "colour": colour, "stock": number % 7}
        products.append(product)
    for number, odd in enumerate(ODD_IDS):
        products[number]["id"] = odd
    products[5]["title"] = ODD_TITLE
    products[6]["price"] = ""
    return products


def make_catalogue(run: Run, *, only: int = 60, flip_average: bool = True) -> None:
    """Index the first `only` products."""
    folder = run.path / "photos"
    folder.mkdir(exist_ok=True)
    images, _ = TinyDataModule(val_size=32, mean=[0.5], std=[0.25]).load(train=True)
    with (folder / "shop.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "title", "category", "price", "colour", "stock", "image"])
        writer.writeheader()
        for number, product in enumerate(rows()[:only]):
            Image.fromarray(images[number, 0].numpy()).save(folder / f"{number}.png")
            writer.writerow(product | {"image": f"{number}.png"})
    products = products_from_files(None, str(folder / "shop.csv"), lambda done, total: None)
    index_products(products, Catalogue(str(run.catalogue)), TrainedNetwork(run, flip_average=flip_average), prune=True)


def photograph(number: int, side: int = 120) -> bytes:
    """Return an enlarged test image as PNG."""
    images, _ = TinyDataModule(val_size=32, mean=[0.5], std=[0.25]).load(train=False)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(images[number, 0])).resize((side, side), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def served(run: Run, *overrides: str) -> Iterator[str]:
    """Serve the catalogue of a run in a thread, and yield the address."""
    config = compose("serve", [f"run='{run.path}'", "limits.idle_seconds=60", *overrides])
    with open_socket(config.host, 0) as listener:
        settings = {"log_level": "critical", "timeout_graceful_shutdown": 1}
        server = create_server(build_app(config, listener.getsockname()[0]), config, **settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
