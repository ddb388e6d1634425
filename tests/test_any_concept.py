"""Every command on logos, from a folder of pictures to the search page."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import PATIENCE, REPOSITORY
from test_make_logos import SHAPES, needs_renderer, write_icon
from tiny_shop import served

from fashion_cnn.cli.main import compose
from fashion_cnn.evaluate import main as evaluate
from fashion_cnn.export import main as export
from fashion_cnn.index import main as index
from fashion_cnn.predict import main as predict
from fashion_cnn.runs import Run
from fashion_cnn.search import main as search
from fashion_cnn.teach import main as teach
from fashion_cnn.train import train

NEW = {"ring": "M12 1a11 11 0 1 0 .1 0zM12 6a6 6 0 1 1-.1 0z"}


def make_logos(package, out, *words):
    command = [sys.executable, str(REPOSITORY / "scripts" / "make_logos"), f"out={out}", f"simple_icons={package}"]
    subprocess.run([*command, "size=32", "beyond=0", *words], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def logos(tmp_path_factory):
    """Pictures of three brands to train on, and of a fourth, unknown one."""
    folder = tmp_path_factory.mktemp("logos")
    for name, shapes in (("known", SHAPES), ("new", NEW)):
        package = folder / name
        (package / "icons").mkdir(parents=True)
        (package / "data").mkdir()
        brands = [{"title": slug, "slug": slug, "hex": "FF8800"} for slug in shapes]
        (package / "data" / "simple-icons.json").write_text(json.dumps(brands))
        for slug, path in shapes.items():
            write_icon(package, slug, path)
        make_logos(package, folder / f"{name} logos", f"brands={len(shapes)}", "train=24", "test=8")
    return folder


@needs_renderer
@pytest.mark.training
def test_every_command_works_on_logos(logos, command, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    overrides = ["data=image_folder", f"data.root='{logos / 'known logos'}'", "data.image_size=32", "data.batch_size=8"]
    settings = ["model=tiny", "trainer.max_epochs=25", "trainer.check_val_every_n_epoch=5", "callbacks=essential"]
    results = train(compose(overrides=[*overrides, *settings, f"runs_dir='{tmp_path}'"]))
    run = Run(Path(results["run"]))
    assert results["test/accuracy"] > 0.6, "a third would be chance"

    status, out, _ = command(evaluate, f"run={run.path}", "format=json")
    assert status == 0
    assert json.loads(out)["accuracy"] == pytest.approx(results["test/accuracy"])
    status, out, err = command(export, f"run={run.path}")
    assert (status, err) == (0, "")
    assert (run.export / "network.onnx").exists()

    status, out, _ = command(index, f"run={run.path}", f"images={logos / 'known logos' / 'train'}")
    assert status == 0
    assert "72 products added" in out
    pictures = sorted((logos / "known logos" / "test").rglob("*.jpg"))
    correct = 0
    for picture in pictures:
        status, out, _ = command(search, f"run={run.path}", f"image={picture}", "top_k=1", "format=json")
        correct += json.loads(out)[0]["category"] == picture.parent.name
    assert correct > 0.5 * len(pictures)

    examples = sorted((logos / "new logos" / "train" / "ring").iterdir())[:15]
    examples_option = "images=[" + ",".join(map(str, examples)) + "]"
    assert command(teach, f"run={run.path}", "name=a ring", examples_option, "false_alarms=0.2")[0] == 0
    _, out, _ = command(predict, f"run={run.path}", f"images={logos / 'new logos' / 'test'}", "format=json")
    assert sum(record["answer"] == "a ring" for record in json.loads(out)) >= 4

    taught = next(Path(record["file"]) for record in json.loads(out) if record["answer"] == "a ring")
    with served(run) as address, httpx.Client(base_url=address, timeout=PATIENCE) as client:
        answer = client.post("/api/search", files=[("picture", ("logo.jpg", pictures[0].read_bytes()))])
        assert answer.status_code == 200
        assert len(answer.json()["hits"]) == 12
        page = client.post("/", files=[("picture", ("new.jpg", taught.read_bytes()))], follow_redirects=True)
        assert "Recognised concepts: a ring. Predicted classes:" in page.text
