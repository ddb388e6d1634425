"""The product search's page and API, through HTTP: what a visitor, a program and an attacker get."""

import base64
import html
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import anyio
import httpx
import hydra.utils
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import PATIENCE
from PIL import Image
from test_pictures import encoded, png_that_claims
from tiny_images import TinyDataModule
from tiny_shop import CLASSES, ODD_IDS, make_catalogue, photograph, served

from fashion_cnn.cli.main import compose
from fashion_cnn.concepts import Concepts, fit_background, learn
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.inference.predictor import validation_predictions
from fashion_cnn.metrics.calibration import calibrate
from fashion_cnn.pictures import decode
from fashion_cnn.retrieval.catalogue import Catalogue
from fashion_cnn.retrieval.indexing import index_products
from fashion_cnn.retrieval.products import products_from_data_set
from fashion_cnn.retrieval.searcher import Query, Searcher
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.tables import products_from_files
from fashion_cnn.retrieval.web import pages as web_pages
from fashion_cnn.retrieval.web import service as web_service
from fashion_cnn.retrieval.web.query import SearchQuery, decode_picture, encode_picture
from fashion_cnn.retrieval.web.service import search_catalogue
from fashion_cnn.retrieval.web.state import CatalogueState, CatalogueView
from fashion_cnn.retrieval.web.views import format_attribute, samples_of_test_set
from fashion_cnn.runs import Run
from fashion_cnn.serve import build, main


@pytest.fixture(scope="module")
def serving():
    """Start servers, each a client; they end with the module."""
    with ExitStack() as stack:

        def start(run, *overrides):
            address = stack.enter_context(served(run, *overrides))
            return stack.enter_context(httpx.Client(base_url=address, timeout=PATIENCE))

        yield start


@pytest.fixture(scope="module")
def client(serving, shop_run):
    return serving(shop_run)


@pytest.fixture(scope="module")
def searcher(shop_run):
    """The search without the web."""
    snapshot = Snapshot(Catalogue(str(shop_run.catalogue)))
    return Searcher(snapshot, TrainedNetwork(shop_run, flip_average=True))


@pytest.fixture(scope="module")
def products(searcher):
    return {one["id"]: one for one in searcher.snapshot.attributes.to_pylist()}


def page(answer, status=200):
    """The text of a page, with its links."""
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.text


def links(text):
    return [html.unescape(link) for link in re.findall(r'href="([^"]*)"', text)]


def ids_of(text):
    """The products of a page's grid, in order."""
    grid = text.partition('<ul class="grid">')[2].partition("</ul>")[0]
    found = [dict(parse_qsl(urlsplit(link).query))["id"] for link in links(grid) if link.startswith("/product?")]
    return list(dict.fromkeys(found))


def upload(client, *pictures, path="/", **fields):
    files = [("picture", (f"{number}.png", content)) for number, content in enumerate(pictures)]
    return client.post(path, files=files, data=fields)


def damaged_profile():
    """A picture of a link with an empty colour profile behind its pixels, where Pillow looks for a byte."""
    png = encoded(Image.new("L", (20, 20)), "PNG")
    chunk = struct.pack(">I", 0) + b"iCCP" + struct.pack(">I", zlib.crc32(b"iCCP"))
    return base64.urlsafe_b64encode(png[:-12] + chunk + png[-12:]).rstrip(b"=").decode()


def icon_of(png):
    """An ICO file with a PNG in it, which says nothing of that one's size."""
    return struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png


def hits(answer):
    assert answer.status_code == 200, answer.text[:300]
    return [hit["id"] for hit in answer.json()["hits"]]


# A visitor


def test_the_first_page_offers_a_form_samples_and_the_catalogue(client, products):
    text = page(client.get("/"))
    assert 'type="file"' in text
    assert ids_of(text) == sorted(products)[:12]
    samples = [link for link in links(text) if link.startswith("/?picture=")]
    assert len(samples) == len(CLASSES)
    for link, name in zip(samples, CLASSES, strict=True):
        assert f"<span>{name}</span>" in page(client.get(link))


def test_a_picture_leads_to_a_link_that_shows_what_the_network_sees_and_what_looks_like_it(client, searcher):
    answer = upload(client, photograph(6))
    assert answer.status_code == 303
    link = answer.headers["location"]
    assert link.startswith("/?picture=")
    assert len(link) < 2000
    text = page(client.get(link))
    picture = searcher.network.preparation(decode(photograph(6)))
    assert ids_of(text) == [hit.id for hit in searcher.search(Query(pictures=(picture,))).hits]
    assert f"<h3>{CLASSES[6 % 4]}</h3>" in text
    assert text.count("<meter") == 3


def test_probabilities_are_calibrated_and_the_least_sure_are_none_of_these(client, serving, shop_run, searcher):
    # As the catalogue's own pictures were looked at.
    assert searcher.network.flip_average
    calibration = calibrate(validation_predictions(shop_run, flip_average=True), reject=0.01)
    assert calibration.temperature != pytest.approx(1, abs=0.01), "not trivial"
    black = encoded(Image.new("L", (20, 20), 0))
    for content in (photograph(3), black):
        (said,) = upload(client, content, path="/api/search").json()["pictures"]
        logits = searcher.network.logits(searcher.network.preparation(decode(content))[None])
        expected = calibration.probabilities(logits)[0].sort(descending=True).values[:3].tolist()
        assert [each["probability"] for each in said["classes"]] == pytest.approx(expected, abs=1e-6)
        assert (said["said"] == "none of these") == (expected[0] < calibration.threshold)
    everything = serving(shop_run, "reject=0.99")
    assert "None of the known classes" in page(everything.get(upload(everything, black).headers["location"]))


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({"category": "top"}, lambda one: one["category"] == "top"),
        ({"category": ["top", "low"]}, lambda one: one["category"] in ("top", "low")),
        ({"price_min": 20, "price_max": "40.5"}, lambda one: one["price"] and 20 <= one["price"] <= 40.5),
        ({"where": "colour:red"}, lambda one: one["colour"] == "red"),
        (
            {"where": ["colour:red", "colour:blue", "stock:3"]},
            lambda one: one["colour"] != "green" and one["stock"] == 3,
        ),
        ({"where": "stock:2..4"}, lambda one: 2 <= one["stock"] <= 4),
        ({"where": ["stock:5..", "colour:red"]}, lambda one: one["stock"] >= 5 and one["colour"] == "red"),
        (
            {"category": "top", "price_max": 30, "like": "p20"},
            lambda one: one["category"] == "top" and one["price"] <= 30,
        ),
    ],
)
def test_filters_keep_only_what_fits(client, products, asked, fits):
    expected = {one["id"] for one in products.values() if fits(one)} - {asked.get("like")}
    assert 0 < len(expected) < 60
    first = client.get("/api/search", params=asked).json()
    assert first["matching"] == len(expected)
    found = [client.get("/api/search", params=asked | {"page": number}).json()["hits"] for number in (1, 2, 3, 4, 5)]
    assert {hit["id"] for those in found for hit in those} == expected
    assert ids_of(page(client.get("/", params=asked))) == [hit["id"] for hit in first["hits"]]


def test_words_find_titles_and_join_with_pictures(client, products, searcher):
    text = page(client.get("/", params={"text": "red"}))
    assert ids_of(text)
    assert all("red" in products[one]["title"] for one in ids_of(text))
    both = hits(client.get("/api/search", params={"text": "red", "like": "p20"}))
    assert both == [hit.id for hit in searcher.search(Query(text="red", like=("p20",))).hits]
    assert both != hits(client.get("/api/search", params={"like": "p20"}))


def test_marks_refine_the_search_and_can_be_taken_back(client, searcher):
    text = page(client.get("/", params={"like": "p20"}))
    more, less = ids_of(text)[1], ids_of(text)[5]
    mark = next(link for link in links(text) if link.endswith(f"like=p20&like={more}"))
    text = page(client.get(mark))
    mark = next(link for link in links(text) if link.endswith(f"unlike={less}"))
    text = page(client.get(mark))
    query = Query(like=("p20", more), unlike=(less,))
    assert ids_of(text) == [hit.id for hit in searcher.search(query).hits]
    assert {more, less, "p20"}.isdisjoint(ids_of(text))
    taken_back = f"/?like=p20&like={more}"
    assert taken_back in links(text)


def test_the_newest_mark_on_a_product_counts(client):
    text = page(client.get("/", params={"like": ["p20", "p21"]}))
    product = next(link for link in links(text) if link.startswith("/product?id=p21"))
    assert "/?like=p20&unlike=p21" in links(page(client.get(product)))


def test_a_product_shows_all_that_is_known_and_leads_on(client, products):
    text = page(client.get("/product", params={"id": "p20", "like": "p30", "category": "top"}))
    for value in ("p20", "blue top number 20", "30.00", "blue", "6"):
        assert f">{value}<" in text
    similar = ids_of(text)
    assert len(similar) == 12
    assert "p20" not in similar
    assert "/?like=p30&category=top" in links(text), "back to the results"
    assert "/?like=p20" in links(text), "a search of its own"
    assert "/?like=p30&like=p20&category=top" in links(text), "a mark in the search that led here"
    page(client.get(next(link for link in links(text) if link.startswith("/product?"))))


@pytest.mark.parametrize("odd", ODD_IDS)
def test_products_of_any_name_can_be_opened_marked_and_seen(client, odd):
    text = page(client.get("/product", params={"id": odd}))
    mark = next(link for link in links(text) if link == f"/?{urlencode({'like': odd})}")
    assert odd not in ids_of(page(client.get(mark)))
    record = client.get("/api/product", params={"id": odd}).json()
    assert record["id"] == odd
    thumbnail = client.get(record["thumbnail"])
    assert Image.open(io.BytesIO(thumbnail.content)).size == (20, 20)


def test_what_a_shop_calls_its_products_is_text_and_no_page(client):
    for link in ("/product?id=p05", "/", f"/?{urlencode({'text': '<script>alert(1)</script>'})}"):
        text = page(client.get(link))
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in page(client.get("/product?id=p05"))


def test_a_form_without_a_picture_becomes_a_link_without_blanks(client):
    fields = {"text": "red", "price_min": "", "price_max": "40", "category": ["top", "low"], "like": "p20"}
    answer = client.post("/", data=fields, files=[("picture", ("", b""))])
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?like=p20&text=red&category=top&category=low&price_max=40"


def test_a_new_picture_is_a_new_search_among_the_same_products(client):
    link = upload(client, photograph(0), photograph(1), like="p20", category="top", page="3").headers["location"]
    names = [name for name, _ in parse_qsl(urlsplit(link).query)]
    assert names == ["picture", "picture", "category"]
    assert len(client.get(link).text) > 1000


def test_pages_show_each_product_once_and_keep_the_query(client, products):
    seen, link = [], "/?category=top&category=low&category=middle"
    while link:
        text = page(client.get(link))
        seen += ids_of(text)
        link = next(
            (each for each in links(text) if "page=" in each and f'href="{html.escape(each)}" rel="next"' in text), None
        )
        assert link is None or link.startswith("/?category=top&category=low&category=middle&page=")
    assert sorted(seen) == sorted(one for one, about in products.items() if about["category"] != "bottom")


def test_the_form_keeps_filters_that_have_no_box(client):
    text = page(client.get("/", params={"where": ["stock:3", "colour:red"], "category": "gone"}))
    assert '<input type="hidden" name="where" value="stock:3">' in text
    assert '<input type="hidden" name="category" value="gone">' in text
    assert 'type="hidden" name="where" value="colour:red"' not in text


def test_a_product_leads_back_to_the_page_that_it_was_on(client):
    link = next(link for link in links(page(client.get("/?category=top&category=low&page=2"))) if "/product" in link)
    assert "/?category=top&category=low&page=2" in links(page(client.get(link)))


def test_nothing_found_is_a_page_with_a_way_on(client):
    text = page(client.get("/?text=zzz&category=top"))
    assert "No products found" in text
    assert "/?text=zzz" in links(text)
    assert "Back to the first page" in page(client.get("/?category=top&page=99"))


def test_nothing_is_loaded_from_another_host_and_nothing_runs_in_the_page(client):
    found = [upload(client, photograph(2)).headers["location"], "/", "/product?id=p20", "/developer", "/api", "/none"]
    for link in found:
        text = client.get(link).text
        assert not re.findall(r'(?:href|src|action)="(?:https?:)?//', text)
        assert "style=" not in text
        assert not re.findall(r"<script(?! src=\"/static/search.js\" defer></script>)|\son\w+=", text)
    names = set(re.findall(r'"(/static/[^"]+)"', client.get("/").text))
    assert names >= {"/static/style.css", "/static/search.js"}
    for name in names:
        assert client.get(name).status_code == 200
    style = client.get("/static/style.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "url(" not in style.text
    assert "prefers-color-scheme: dark" in style.text


# The shop's developer


def test_the_developers_page_says_what_is_searched_and_how_fast(client, shop_run):
    client.get("/?like=p20")
    text = page(client.get("/developer"))
    for said in (">60<", str(shop_run.path), "calibrated on the run", "p95 ms", "Embed", "evaluate_search"):
        assert said in text
    points = text.partition('class="scatter"')[2].partition("</svg>")[0].count("<circle")
    assert points == 60
    assert all(f"</svg> {name} " in text for name in CLASSES)


def test_columns_whose_values_no_box_can_send_are_no_filters(shop_run):
    front = CatalogueState(shop_run, Catalogue(str(shop_run.catalogue)), reject=0.01).require_view()
    for name, values in (
        ("size: eu", ["38", "40"]),
        ("described", ["x" * 61, "short"]),
        ("lines", ["one\ntwo", "one"]),
        ("season", ["summer", "all\u00a0year"]),
    ):
        front.snapshot.attributes = front.snapshot.attributes.append_column(name, pa.array(values * 30))
    filters = CatalogueView(front.searcher, front.predictor).filters
    assert [each.column for each in filters] == ["category", "colour", "season"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(1299.95, "1,299.95"), (4006381333931.0, "4006381333931"), (0.1, "0.1"), (38, "38"), (None, "not specified")],
)
def test_numbers_of_a_product_are_shown_in_full(value, said):
    assert format_attribute(value) == said


def test_of_many_categories_the_largest_are_offered_and_all_are_counted(shop_run, monkeypatch):
    monkeypatch.setattr("fashion_cnn.retrieval.web.state._MAX_CATEGORIES", 3)
    front = CatalogueState(shop_run, Catalogue(str(shop_run.catalogue)), reject=0.01).require_view()
    counts = front.snapshot.attributes["category"].value_counts().to_pylist()
    largest = sorted(counts, key=lambda one: -one["counts"])[:3]
    assert front.category_count == 4
    assert sorted(count for _, count in front.categories.counts) == sorted(one["counts"] for one in largest)


def test_the_developers_page_shows_what_was_measured(client, shop_run):
    folder = shop_run.path / "search_evaluation" / "test"
    folder.mkdir(parents=True)
    overall = {"precision": {"1": {"value": 0.98765}, "10": {"value": 0.5}}, "map_at_100": {"value": 0.25}}
    measures = {
        "queries": 200,
        "catalogue": 60_000,
        "searches": {"all classes": {"network": {"overall": overall}}},
        "instances": {"shot_noise": {"network": {"recall": {"10": {"value": 0.75}}}, "pixels": {}}},
    }
    try:
        (folder / "measures.json").write_text(json.dumps(measures))
        text = page(client.get("/developer"))
        for said in (
            "200 test images as queries, 60,000 images in the catalogue",
            ">98.8%<",
            ">50.0%<",
            ">25.0%<",
            ">shot noise<",
            ">75.0%<",
        ):
            assert said in text
        for damaged in ("{", "[]", '{"queries": "x"}'):
            (folder / "measures.json").write_text(damaged)
            assert "Not evaluated yet" in page(client.get("/developer"))
    finally:
        shutil.rmtree(folder.parent)


# A program


def test_the_api_finds_what_the_page_finds_and_links_to_it(client, products):
    answer = upload(client, photograph(5), path="/api/search", category="middle", price_min="12").json()
    assert answer["matching"] == sum(
        one["category"] == "middle" and (one["price"] or 0) >= 12 for one in products.values()
    )
    assert answer["pictures"][0]["said"] == "middle"
    first = answer["hits"][0]
    assert first.keys() >= {"id", "title", "category", "price", "similarity", "colour", "stock", "thumbnail"}
    assert ids_of(page(client.get(answer["link"]))) == [hit["id"] for hit in answer["hits"]]
    assert hits(client.get("/api" + answer["link"].replace("/?", "/search?"))) == [hit["id"] for hit in answer["hits"]]
    assert answer["milliseconds"].keys() == {"decode", "embed", "search", "attributes and thumbnails"}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("txt=shirt", "Unknown parameter txt. Did you mean text?"),
        ("catgory=top", "Unknown parameter catgory. Did you mean category?"),
        ("utterly=other", "Unknown parameter utterly."),
        ("top_k=0", "Invalid value of top_k"),
    ],
)
def test_a_misspelt_parameter_of_the_api_is_told(client, query, said):
    answer = client.get(f"/api/search?{query}")
    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_the_api_gives_as_many_products_as_are_asked_for(client):
    first = client.get("/api/search?top_k=3").json()["hits"]
    second = client.get("/api/search?top_k=3&page=2").json()["hits"]
    assert len({hit["id"] for hit in first + second}) == 6
    answer = client.post("/api/search", files={"picture": photograph(0)}, data={"txt": "shirt"})
    assert answer.status_code == 422


def test_pictures_not_to_be_like_come_as_files_too(client, searcher):
    files = [("picture", ("a.png", photograph(1))), ("unlike_picture", ("b.png", photograph(2)))]
    answer = client.post("/api/search", files=files)
    one, other = (searcher.network.preparation(decode(photograph(number))) for number in (1, 2))
    assert hits(answer) == [hit.id for hit in searcher.search(Query(pictures=(one,), unlike_pictures=(other,))).hits]
    text = page(client.get(answer.json()["link"]))
    assert "Not like this: " in text
    assert ids_of(text) == hits(answer)


def test_the_description_of_the_api_is_true_and_readable_offline(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/api/search", "/api/product", "/api/thumbnail", "/api/status"}
    text = page(client.get("/api"))
    for path, methods in described["paths"].items():
        for method in methods:
            assert f'<span class="method">{method.upper()}</span> {path}<' in text
    for name in ("unlike_picture", "price_max", "where", "page"):
        assert f"<code>{name}</code>" in text
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_the_status_says_what_is_searched(client, shop_run, searcher):
    status = client.get("/api/status").json()
    assert (status["products"], status["version"]) == (60, searcher.snapshot.version)
    assert (status["problem"], status["probabilities_calibrated"]) == (None, True)


# The catalogue changes


@pytest.fixture
def own_run(shop_run, tmp_path):
    """A copy, to change."""
    return Run(shutil.copytree(shop_run.path, tmp_path / "run"))


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_newer_version_is_taken_over_and_told(own_run, serving):
    client = serving(own_run, "refresh_seconds=0.05")
    assert "catalogue was updated" not in client.get("/").text
    before = client.get("/api/status").json()["version"]
    make_catalogue(own_run, only=30)
    until(lambda: client.get("/api/status").json()["products"] == 30)
    assert client.get("/api/status").json()["version"] > before
    text = page(client.get("/"))
    assert "The catalogue was updated" in text
    assert "30 products" in text
    assert client.get("/product?id=p40").status_code == 404


def test_a_catalogue_that_was_made_anew_is_taken_over(own_run, serving):
    # Both get to the same version number.
    shutil.rmtree(own_run.catalogue)
    make_catalogue(own_run, only=20)
    client = serving(own_run, "refresh_seconds=0.05")
    version = client.get("/api/status").json()["version"]
    shutil.rmtree(own_run.catalogue)
    make_catalogue(own_run, only=30)
    until(lambda: client.get("/api/status").json()["products"] == 30)
    assert client.get("/api/status").json()["version"] == version


def test_another_networks_catalogue_is_read_once_and_the_one_of_before_is_searched_on(own_run, monkeypatch):
    shop = CatalogueState(own_run, Catalogue(str(own_run.catalogue)), reject=0.01)

    class Another(TrainedNetwork):
        identity = "another"

    products = products_from_files(str(own_run.path / "photos"), None, lambda done, total: None)
    index_products(products, shop.catalogue, Another(own_run, flip_average=True), rebuild=True)
    read = []
    monkeypatch.setattr("fashion_cnn.retrieval.web.state.Snapshot", lambda one: read.append(one) or Snapshot(one))
    for _ in range(3):
        shop.refresh()
        assert "another network" in shop.problem
    assert len(read) == 1
    assert len(shop.require_view().snapshot) == 60


def test_without_a_catalogue_a_page_says_how_to_make_one_and_finds_it(own_run, serving):
    shutil.rmtree(own_run.catalogue)
    client = serving(own_run, "refresh_seconds=0.05")
    answer = client.get("/")
    assert "python -m fashion_cnn.index" in page(answer, 503)
    assert answer.headers["retry-after"]
    api = client.get("/api/search")
    assert api.status_code == 503
    assert "fashion_cnn.index" in api.json()["error"]
    assert client.get("/api/status").json()["products"] is None
    make_catalogue(own_run, only=20)
    until(lambda: client.get("/").status_code == 200)
    assert len(ids_of(client.get("/").text)) == 12


def taught(run):
    """A concept of two test images, in the run's directory."""
    pictures = [Image.open(io.BytesIO(photograph(number, 28))) for number in (0, 4)]
    network = TrainedNetwork(run, flip_embeddings=True)
    concepts = Concepts(run, network.identity)
    concepts.save_background(fit_background(network, TinyDataModule(val_size=32, mean=[0.5], std=[0.25])))
    looked = network.outputs(torch.stack([network.preparation(picture) for picture in pictures]))
    concepts.save(learn("a stripe", looked.embeddings, concepts.background(), false_alarms=0.3))
    return concepts


def test_a_damaged_concept_is_told_and_the_ones_of_before_are_known(own_run, serving):
    client = serving(own_run, "refresh_seconds=0.05")

    def knows():
        return "Recognised concepts: a stripe" in page(client.get(upload(client, photograph(0)).headers["location"]))

    assert not knows()
    taught(own_run)
    until(knows)
    broken = own_run.concepts / "concept-broken.npz"
    broken.write_bytes(b"no archive")
    until(lambda: client.get("/api/status").json()["problem"])
    assert "concept-broken.npz is damaged" in page(client.get("/"))
    assert knows()
    np.savez(broken, something=1)
    make_catalogue(own_run, only=30)
    until(lambda: client.get("/api/status").json()["products"] == 30)
    assert "it holds no network" in client.get("/api/status").json()["problem"]
    assert knows()
    broken.unlink()
    until(lambda: not client.get("/api/status").json()["problem"])


def test_concepts_are_recognised_in_mirror_images_too_whatever_the_catalogue_holds(own_run):
    concepts = taught(own_run)
    shutil.rmtree(own_run.catalogue)
    make_catalogue(own_run, only=20, flip_average=False)
    front = CatalogueState(own_run, Catalogue(str(own_run.catalogue)), reject=0.01).require_view()
    network = TrainedNetwork(own_run, flip_embeddings=True)
    picture = network.preparation(decode(photograph(1)))
    plain = TrainedNetwork(own_run).outputs(picture[None])
    both = network.outputs(picture[None])
    assert not torch.allclose(plain.embeddings, both.embeddings, atol=1e-3)
    result = search_catalogue(front, SearchQuery(), top_k=3, files={"picture": [photograph(1)]}, max_pixels=10**6)
    assert result.predictions[0].taught == tuple(concepts.recognise(both.embeddings)[0])
    assert result.hits == front.searcher.search(Query(pictures=(picture,), top_k=3)).hits


def test_a_catalogue_that_vanishes_is_searched_on_and_told(own_run, serving):
    client = serving(own_run, "refresh_seconds=0.05")
    shutil.move(own_run.catalogue, own_run.path / "elsewhere")
    until(lambda: client.get("/api/status").json()["problem"])
    text = page(client.get("/?like=p20"))
    assert "cannot be loaded" in text
    assert len(ids_of(text)) == 12
    shutil.move(own_run.path / "elsewhere", own_run.catalogue)
    until(lambda: not client.get("/api/status").json()["problem"])


def test_without_a_test_set_products_are_the_samples(shop_run, serving, monkeypatch):
    def missing(self, *, train):
        raise UserError("no such files")

    monkeypatch.setattr(TinyDataModule, "load", missing)
    text = page(serving(shop_run).get("/"))
    samples = links(text.partition('class="samples"')[2].partition("</ul>")[0])
    assert len(samples) == len(CLASSES)
    assert all(link.startswith("/?like=") for link in samples)


def test_samples_are_none_rather_than_downloaded(own_run, torchvision_root, tmp_path, monkeypatch):
    overrides = ["data=kmnist", f"data.root='{torchvision_root}'", "data.val_size=10"]
    config = compose(overrides=overrides)
    config.data.detected = dict(hydra.utils.instantiate(config.data, _convert_="all").detected)
    own_run.write_config(config)
    assert len(samples_of_test_set(own_run, None)) == 10
    monkeypatch.setattr("torchvision.datasets.KMNIST.download", lambda self: pytest.fail("a download"))
    assert samples_of_test_set(own_run, str(tmp_path / "nowhere")) == ()


def test_a_data_sets_catalogue_says_that_its_prices_are_made_up(own_run, serving):
    assert "prices are made up" not in serving(own_run).get("/").text
    data = TinyDataModule(val_size=32, mean=[0.5], std=[0.25])
    network = TrainedNetwork(own_run, flip_average=True)
    index_products(products_from_data_set(data), Catalogue(str(own_run.catalogue)), network, rebuild=True)
    text = page(serving(own_run).get("/"))
    assert "Its prices are made up." in text
    assert "160 products" in text


# Mistakes


@pytest.mark.parametrize(
    ("method", "link", "status", "said"),
    [
        ("GET", "/nothing", 404, "does not exist"),
        ("GET", "/static/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404, "does not exist"),
        ("GET", "/product?id=none", 404, "has no product"),
        ("GET", "/product", 422, "Invalid value of id"),
        ("GET", "/?like=none", 404, "has no product"),
        ("GET", "/?price_min=cheap", 422, "Invalid value of price_min"),
        ("GET", "/?price_min=nan", 422, "Invalid value of price_min"),
        ("GET", "/?price_min=50&price_max=10", 422, "from 50.0 to 10.0 there is nothing"),
        ("GET", "/?page=0", 422, "Invalid value of page"),
        ("GET", "/?page=101", 422, "Invalid value of page"),
        ("GET", "/?where=secret:1", 422, "no column secret"),
        ("GET", "/?where=vector:1", 422, "no column vector"),
        ("GET", "/?where=stock:many", 422, "stock=many is not possible"),
        ("GET", "/?where=colour", 422, "has no value"),
        ("GET", "/?where=stock:4..2", 422, "from 4 to 2 there is nothing"),
        ("GET", "/?where=stock:a..b", 422, "stock=a is not possible"),
        # A PNG of the right size, whose last chunk is an empty colour profile.
        ("GET", f"/?picture={damaged_profile()}", 422, "damaged"),
        ("GET", f"/?text={'x' * 201}", 422, "Invalid value of text"),
        ("GET", "/?" + "&".join(["like=p20"] * 21), 422, "Invalid value of like"),
        ("GET", "/?picture=AAAA", 422, "damaged"),
        ("GET", "/?picture=%C3%A4", 422, "damaged"),
        ("GET", f"/?picture={'A' * 12_001}", 422, "Invalid value of picture"),
        ("PUT", "/", 405, "not allowed here"),
        ("DELETE", "/product?id=p20", 405, "not allowed here"),
        ("POST", "/", 415, "multipart/form-data"),
    ],
)
def test_mistakes_are_pages_for_people_and_json_for_programs(client, method, link, status, said):
    answer = client.request(method, link)
    text = page(answer, status)
    assert said in html.unescape(text)
    assert "<h1>" in text
    assert "/" in links(text)
    path, _, query = link.partition("?")
    path = {"/": "/api/search"}.get(path, f"/api{path}")
    answer = client.request(method, f"{path}?{query}" if query else path)
    assert answer.status_code == status
    assert answer.json()["status"] == status
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 415, "is empty"),
        (b"no picture", 415, "holds text"),
        (b"\x00\x01" * 500, 415, "no picture of a kind"),
        (encoded(Image.new("RGB", (300, 300), "red"), "JPEG")[:900], 415, "damaged"),
        (png_that_claims(60_000, 60_000), 413, "too large"),
        (png_that_claims(6000, 6000), 413, "16 million pixels"),
        (icon_of(png_that_claims(6000, 6000)), 415, "no picture of a kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n(run) run", 415, "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no picture"),
        (b"x" * 10_000_001, 413, "10 MB"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(client, content, status, said):
    assert said in page(upload(client, content), status)
    assert said in upload(client, content, path="/api/search").json()["error"]


def test_of_several_pictures_the_one_that_is_none_is_named(client):
    assert "Picture 2 of 3 is not a picture: it holds text" in page(
        upload(client, photograph(0), b"no picture", photograph(1)), 415
    )
    answer = upload(client, photograph(0), b"no picture", path="/api/search")
    assert answer.json()["error"].startswith("Picture 2 of 2 is not a picture: it holds text")


def test_a_picture_is_known_by_its_content_not_by_its_name(client):
    answer = client.post("/api/search", files={"picture": ("../../x.exe", photograph(4), "text/plain")})
    assert answer.json()["pictures"][0]["said"] == CLASSES[0]


def test_the_api_refuses_fields_that_it_does_not_know_and_takes_top_k(client):
    def asked(query="", **form):
        return client.post(f"/api/search{query}", **form)

    pictures = {"picture": ("a", photograph(0))}
    assert "Unknown parameter image" in asked(files={"image": ("a", photograph(0))}).json()["error"]
    assert "fields of the form" in asked("?category=top", files=pictures).json()["error"]
    assert len(asked(files=pictures, data={"top_k": "3"}).json()["hits"]) == 3
    assert asked(files=pictures, data={"top_k": "0"}).status_code == 422
    link = parse_qs(urlsplit(asked(files=pictures).json()["link"]).query)["picture"]
    answer = asked(files=[("picture", ("a", photograph(0)))] * 4, data={"picture": link})
    assert (answer.status_code, "Too many pictures" in answer.text) == (422, True)
    odd = b'--b\r\nContent-Disposition: form-data; name="+2AA-"\r\n\r\nx\r\n--b--\r\n'
    answer = asked(content=odd, headers={"content-type": "multipart/form-data; boundary=b; charset=utf-7"})
    assert answer.status_code == 422


def test_a_colour_picture_of_64_pixels_fits_into_a_link():
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    picture = torch.from_numpy(np.asarray(Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)).copy())
    picture = picture.permute(2, 0, 1)
    text = encode_picture(picture)
    assert len(text) <= 12_000
    assert (decode_picture(text, (3, 64, 64)).float() - picture.float()).abs().mean() < 6


def test_an_address_of_64_kb_is_taken(client):
    pictures = {"picture": ["A" * 12_000] * 4, "unlike_picture": ["A" * 12_000]}
    answer = client.get(f"/?{urlencode(pictures, doseq=True)}", headers={"cookie": "x" * 4000})
    assert "The picture in this link is damaged" in page(answer, 422)


def test_pictures_that_are_too_long_together_for_a_link_have_none(client, monkeypatch):
    monkeypatch.setattr("fashion_cnn.retrieval.web.api.encode_picture", lambda picture: "A" * 12_000)
    for count, has_link in ((2, True), (4, False)):
        files = [(name, ("a.png", photograph(5))) for name in ("picture", "unlike_picture")] * count
        answer = client.post("/api/search", files=files)
        assert (answer.status_code, answer.json()["link"] is not None) == (200, has_link)


def test_too_many_pictures_or_fields_are_refused(client):
    assert upload(client, *[photograph(0)] * 5).status_code == 422
    assert upload(client, *[photograph(0)] * 5, path="/api/search").status_code == 422
    assert upload(client, *[photograph(0)] * 9).status_code == 400
    assert client.post("/", files=[("like", (None, "p20"))] * 500).status_code == 400
    assert upload(client, photograph(0), text="x" * 20_000).status_code == 400


def test_a_stream_without_a_length_ends_at_the_limit(shop_run):
    sent, answers = 0, []

    def endless():
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\n'
        while True:
            sent += 1_000_000
            yield b"x" * 1_000_000

    chunks = endless()

    async def receive():
        return {"type": "http.request", "body": next(chunks), "more_body": True}

    async def send(message):
        answers.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/api/search", "query_string": b"", "headers": headers}
    anyio.run(build(compose("serve", [f"run='{shop_run.path}'"]), "127.0.0.1"), scope, receive, send)
    assert answers[0]["status"] == 413
    assert sent < 12_000_000


# Safety

SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.mark.parametrize(
    "link", ["/", "/developer", "/api", "/api/status", "/static/style.css", "/nothing", "/?page=x"]
)
def test_every_answer_tells_the_browser_to_be_careful_and_head_is_a_get_without_its_body(client, link):
    answer = client.get(link)
    assert answer.headers.items() >= SAFE.items()
    policy = answer.headers["content-security-policy"]
    for rule in ("default-src 'self'", "img-src 'self' data:", "frame-ancestors 'none'", "form-action 'self'"):
        assert rule in policy
    assert "unsafe" not in policy
    head = client.head(link)
    assert (head.status_code, head.content) == (answer.status_code, b"")
    assert head.headers["content-type"] == answer.headers["content-type"]


def test_a_failure_of_ours_is_told_without_its_inside(client, monkeypatch):
    def broken(asked, answered):
        raise RuntimeError("a secret")

    monkeypatch.setattr(web_pages, "query_pictures", broken)
    # The server gives up a connection after a failure: the next test is to have another.
    answer = client.get("/", headers={"connection": "close"})
    assert "a secret" not in page(answer, 500)
    assert "Traceback" not in answer.text
    assert answer.headers.items() >= SAFE.items()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost@evil", "[::1"]
)
def test_a_server_of_this_machine_answers_to_its_own_names_alone(client, host):
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 400
    assert CLASSES[0] not in answer.text
    for own in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000"):
        assert client.get("/api/status", headers={"host": own}).status_code == 200


def test_a_server_for_others_answers_to_any_name(serving, shop_run):
    assert serving(shop_run, "host=0.0.0.0").get("/", headers={"host": "shop.example"}).status_code == 200


@pytest.fixture
def empty_temporary_folder(tmp_path, monkeypatch):
    """Where temporary files would lie, now and at any moment."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    def no_file(*args, **kwargs):
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", no_file)
    yield folder
    assert not list(folder.iterdir())


def test_pictures_are_never_written_to_disk(client, empty_temporary_folder):
    large = encoded(Image.frombytes("RGB", (1200, 900), random.Random(0).randbytes(1200 * 900 * 3)))
    assert len(large) > 3_000_000
    assert upload(client, large).status_code == 303
    assert upload(client, large, path="/api/search").status_code == 200
    assert upload(client, large, large, large, large).status_code == 413


def hostile_queries(chance, count):
    texts = [
        *(
            "' OR 1=1 --",
            '"',
            "(",
            ")",
            "*",
            "a AND",
            "title:x",
            "\\",
            "\x00",
            "[a TO b]",
            "+ - ~ ^2",
            "💥" * 50,
            "{{7*7}}",
        ),
        *("../../etc/passwd", "%00", "%s%n", "true", "null", "NaN", "-1", "1e999", "9" * 400, "\u202e", "\ud800", " "),
        *("price > 0", "colour:' OR 1=1 --", ":", "key:x", "id:p20", "seen_as:top", "confidence:0.5", "__class__:x"),
        *('{"match":{"title":"x"}}', "a" * 199, "AAAA=", "-_-_", "\r\nset-cookie: x=1", "<svg onload=alert(1)>"),
    ]
    names = [
        "picture",
        "unlike_picture",
        "like",
        "unlike",
        "text",
        "category",
        "price_min",
        "price_max",
        "where",
        "page",
        "id",
    ]
    for _ in range(count):
        pairs = [(chance.choice(names), chance.choice(texts)) for _ in range(chance.randint(1, 4))]
        yield urlencode(pairs, errors="surrogatepass")
    for byte in range(0, 256, 9):
        yield f"text=%{byte:02x}%{255 - byte:02x}&like=%{byte:02x}"
    yield from ("&" * 500, "=" * 500, "text", "text=%", "page=٣", "like[]=p20", "text=red;category=top")


def test_hundreds_of_hostile_queries_are_answered_without_a_failure(client, empty_temporary_folder):
    chance = random.Random(0)
    statuses = set()
    for number, query in enumerate(hostile_queries(chance, 220)):
        path = ("/", "/api/search", "/product", "/api/product", "/api/thumbnail", "/developer")[number % 6]
        answer = client.request(
            chance.choice(["GET", "GET", "GET", "HEAD", "POST", "PATCH", "OPTIONS"]), f"{path}?{query}"
        )
        assert answer.status_code < 500, query
        assert "Traceback" not in answer.text
        assert "set-cookie" not in answer.headers
        statuses.add(answer.status_code)
    assert statuses >= {200, 404, 405, 422}


def hostile_pictures(chance, count):
    kinds = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
    whole = [encoded(Image.new("RGB", (40, 30), "red"), kind) for kind in kinds]
    for _ in range(count):
        content = bytearray(chance.choice(whole))
        for _ in range(chance.randint(1, 12)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        yield bytes(content[: chance.randint(1, len(content))])
        yield chance.randbytes(chance.randint(1, 300))
    bomb = zlib.compress(bytes(3900 * 3901))
    header = b"IHDR" + struct.pack(">IIBBBBB", 3900, 3900, 8, 0, 0, 0, 0)
    parts = [header, b"IDAT" + bomb, b"IEND"]
    yield b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts
    )
    for size in ((1, 1), (20_000, 1), (1, 20_000), (20, 20)):
        yield encoded(Image.new("RGBA", size, (1, 2, 3, 0)))
    yield icon_of(png_that_claims(6000, 6000))
    yield icon_of(encoded(Image.new("L", (3900, 3901))))
    yield encoded(Image.new("I;16", (30, 30)))
    yield encoded(Image.new("F", (30, 30), float("nan")), "TIFF")


def test_hundreds_of_hostile_uploads_are_answered_without_a_failure(client, empty_temporary_folder):
    chance = random.Random(1)
    statuses = set()
    names = ["../../x.png", "x\x00.png", "con", "a" * 300, "é.png", "'; drop"]
    for content in hostile_pictures(chance, 70):
        files = {"picture": (chance.choice(names), content, chance.choice(["image/png", "text/html", "x" * 99]))}
        answer = client.post(chance.choice(["/", "/api/search"]), files=files)
        assert answer.status_code in (200, 303, 413, 415), answer.text[:300]
        statuses.add(answer.status_code)
    assert statuses >= {200, 303, 415}


def hostile_forms(chance):
    part = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nred\r\n--b--\r\n'
    for kind in (
        *("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 300),
        *("multipart/form-data; boundary=é", "application/json", "application/x-www-form-urlencoded", "", "text/plain"),
        *(
            f"multipart/form-data; boundary=b; charset={name}"
            for name in ("zlib", "rot13", "utf-7", "utf-16", "idna", "no")
        ),
    ):
        yield kind, part
    for body in (
        b"",
        b"--b",
        part[:-9],
        part.replace(b"name=", b"eman="),
        part.replace(b"red", b"\xff\xfe\x00"),
        part.replace(b"text", b"t" * 100_000),
        part.replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * 5000 + b"\r\n", 1),
        part.replace(b'name="text"', b"name=\"picture\"; filename*=utf-8''%00%ff"),
        b"\r\n".join([part] * 200),
        part.replace(b"text", b"page").replace(b"red", b"-1"),
    ):
        yield "multipart/form-data; boundary=b", body
    for _ in range(40):
        body = bytearray(part)
        for _ in range(chance.randint(1, 6)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        yield "multipart/form-data; boundary=b", bytes(body)


def test_forms_that_are_none_are_answered_without_a_failure(client, empty_temporary_folder):
    statuses = set()
    for kind, body in hostile_forms(random.Random(2)):
        for path in ("/", "/api/search"):
            answer = client.post(path, content=body, headers={"content-type": kind.encode("latin-1")})
            assert answer.status_code < 500, (kind, body[:80], answer.text)
            statuses.add(answer.status_code)
    assert statuses >= {200, 303, 400, 415, 422}


def test_a_crowd_is_served_and_a_larger_one_told_to_come_back(shop_run, monkeypatch):
    others_are_answered = threading.Event()

    def waits(*arguments, **options):
        others_are_answered.wait(PATIENCE)
        return search_catalogue(*arguments, **options)

    monkeypatch.setattr(web_service, "search_catalogue", waits)

    def crowd(people, *overrides, most):
        """The responses; searches end once all requests above `most` have been refused."""
        others_are_answered.clear()

        async def ask():
            transport = httpx.ASGITransport(
                build(compose("serve", [f"run='{shop_run.path}'", *overrides]), "127.0.0.1")
            )
            responses = []
            async with (
                httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
                anyio.create_task_group() as tasks,
            ):

                async def one(number):
                    responses.append(await client.get("/api/search", params={"like": f"p{10 + number % 40}"}))
                    if len(responses) >= people - most:
                        others_are_answered.set()

                if people <= most:
                    others_are_answered.set()
                for number in range(people):
                    tasks.start_soon(one, number)
            return responses

        return anyio.run(ask)

    assert {each.status_code for each in crowd(64, most=66)} == {200}
    responses = crowd(40, "limits.threads=1", "limits.waiting=3", most=4)
    assert [each.status_code for each in responses] == [503] * 36 + [200] * 4
    assert all(each.headers["retry-after"] == "1" for each in responses[:36])


def test_uploads_share_a_limited_memory(serving, shop_run):
    client = serving(shop_run, "limits.memory_mb=0.02")
    noise = encoded(Image.frombytes("L", (200, 200), random.Random(0).randbytes(40_000)))
    for _ in range(3):
        assert upload(client, noise).status_code == 503
        assert upload(client, photograph(0)).status_code == 303, "what was taken is given back"


# The command


def test_another_networks_catalogue_is_refused_in_one_message(command, own_run, shop_run):
    import torch

    from fashion_cnn.inference.network import weights_sha256

    checkpoint = torch.load(own_run.best_checkpoint, weights_only=False)
    for value in checkpoint["state_dict"].values():
        value += 1
    torch.save(checkpoint, own_run.best_checkpoint)
    own_run.write_results(own_run.results() | {"weights_sha256": weights_sha256(checkpoint["state_dict"])})
    status, out, err = command(main, f"run={own_run.path}", "port=0")
    assert (status, out) == (1, "")
    assert "another network" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("typed", "status", "said"),
    [
        # An interface that does not exist: known without asking a name server.
        (["host='fe80::1%nosuch'"], 1, "is no address"),
        (["host=192.0.2.1"], 1, "cannot be served"),
        (["host="], 2, "names no address"),
        (["port=70000"], 2, "is no port"),
        (["port=many"], 2, "port=many"),
        (["top_k=0"], 2, "top_k=0"),
        (["reject=1"], 2, "reject=1 is not possible"),
        (["limits.threads=0"], 2, "limits.threads=0"),
        (["refresh_seconds=0"], 2, "refresh_seconds=0"),
        (["prot=1"], 2, "port"),
    ],
)
def test_mistakes_on_the_command_line_are_told_in_one_message(command, shop_run, typed, status, said):
    ended, out, err = command(main, f"run={shop_run.path}", *typed)
    assert (ended, out) == (status, "")
    assert said in err
    assert "Traceback" not in err


def test_a_port_in_use_is_told_in_one_message(command, shop_run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, err = command(main, f"run={shop_run.path}", f"port={taken.getsockname()[1]}")
    assert status == 1
    assert "in use" in err
    assert "name another port=" in err


@pytest.mark.processes
def test_it_says_where_it_is_answers_there_and_ends_quietly(shop_run, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "fashion_cnn.serve", f"run={shop_run.path}", "port=0"]
    server = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said = server.stdout.readline()
        opened = re.match(r"Open (http://127\.0\.0\.1:\d+) ", said)
        assert opened, said or server.stderr.read()
        address = opened[1]
        with httpx.Client(base_url=address, timeout=PATIENCE) as client:
            assert client.get("/api/status").json()["products"] == 60
            assert client.post("/", files={"picture": ("a.png", photograph(0))}).status_code == 303
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            # The response to HEAD ends where its body would begin: the next one follows at once.
            more = b"GET /none HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            connection.sendall(b"HEAD / HTTP/1.1\r\nhost: localhost\r\n\r\n" + more)
            responses = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, rest = responses.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert rest.startswith(b"HTTP/1.1 404 ")
        for raw in (
            b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"\x00\xff\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
        ):
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
                connection.sendall(raw)
                assert b" 4" in connection.recv(100)[:12]
        assert httpx.get(f"{address}/", timeout=PATIENCE).status_code == 200
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=PATIENCE)
        assert (server.returncode, out, err) == (130, "", "\nStopped.\n")
    finally:
        server.kill()
    assert not [file for file in Path(tmp_path).iterdir() if file.is_file()]
