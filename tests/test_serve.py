"""The web page and JSON API of the product search, tested through HTTP."""

import base64
import functools
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
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
from starlette.datastructures import UploadFile
from test_pictures import encoded, png_with_header_size
from tiny_images import TinyDataModule
from tiny_shop import CLASSES, ODD_IDS, make_catalogue, photograph, served

from fashion_cnn.cli.main import compose
from fashion_cnn.concepts import Concepts, fit_background, learn
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import TrainedNetwork, instantiate_data
from fashion_cnn.inference.predictor import read_validation_predictions
from fashion_cnn.metrics.calibration import calibrate
from fashion_cnn.pictures import decode
from fashion_cnn.pictures.isolation import PictureProcess
from fashion_cnn.retrieval import catalogue as catalogue_module
from fashion_cnn.retrieval.catalogue import Catalogue, DamagedCatalogueError
from fashion_cnn.retrieval.indexing import index_products
from fashion_cnn.retrieval.products import products_from_data_set
from fashion_cnn.retrieval.searcher import Query, Searcher
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.tables import products_from_files
from fashion_cnn.retrieval.web import openapi
from fashion_cnn.retrieval.web import pages as web_pages
from fashion_cnn.retrieval.web import service as web_service
from fashion_cnn.retrieval.web.access import Allowance
from fashion_cnn.retrieval.web.query import SearchQuery, decode_picture, encode_picture
from fashion_cnn.retrieval.web.service import SearchService, search_catalogue
from fashion_cnn.retrieval.web.state import CatalogueState, CatalogueView
from fashion_cnn.retrieval.web.views import format_attribute, inline_image, samples_of_test_set
from fashion_cnn.runs import Run
from fashion_cnn.serve import build_app, main


@pytest.fixture(scope="module")
def serving():
    """Function that starts a server and returns its client."""
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
    """The search behind the web server."""
    snapshot = Snapshot(Catalogue(str(shop_run.catalogue)))
    return Searcher(snapshot, TrainedNetwork(shop_run, flip_average=True))


@pytest.fixture(scope="module")
def products(searcher):
    return {product["id"]: product for product in searcher.snapshot.attributes.to_pylist()}


def page(response, status=200):
    """Text of a page."""
    assert response.status_code == status, response.text[:300]
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return response.text


def page_links(text):
    return [html.unescape(link) for link in re.findall(r'href="([^"]*)"', text)]


def grid_ids(text):
    """The products of a page's grid, in order."""
    grid = text.partition('<ul class="grid">')[2].partition("</ul>")[0]
    products = [link for link in page_links(grid) if link.startswith("/product?")]
    return list(dict.fromkeys(dict(parse_qsl(urlsplit(link).query))["id"] for link in products))


def upload(client, *pictures, path="/", **fields):
    files = [("picture", (f"{number}.png", content)) for number, content in enumerate(pictures)]
    return client.post(path, files=files, data=fields)


def damaged_profile():
    """A picture of a link with an empty colour profile behind its pixels, where Pillow looks for a byte."""
    png = encoded(Image.new("L", (20, 20)), "PNG")
    chunk = struct.pack(">I", 0) + b"iCCP" + struct.pack(">I", zlib.crc32(b"iCCP"))
    return base64.urlsafe_b64encode(png[:-12] + chunk + png[-12:]).rstrip(b"=").decode()


def ico_file(png):
    """An ICO file with a PNG in it, which says nothing of that one's size."""
    return struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png


def hit_ids(response):
    assert response.status_code == 200, response.text[:300]
    return [hit["id"] for hit in response.json()["hits"]]


# Pages


def test_start_page_has_a_form_samples_and_the_catalogue(client, products):
    text = page(client.get("/"))
    assert 'type="file"' in text
    assert grid_ids(text) == sorted(products)[:12]
    samples = [link for link in page_links(text) if link.startswith("/?picture=")]
    assert len(samples) == len(CLASSES)
    for link, name in zip(samples, CLASSES, strict=True):
        assert f"<span>{name}</span>" in page(client.get(link))


def test_an_uploaded_picture_becomes_a_link_to_its_classes_and_similar_products(client, searcher):
    response = upload(client, photograph(6))
    assert response.status_code == 303
    link = response.headers["location"]
    assert link.startswith("/?picture=")
    assert len(link) < 2000
    text = page(client.get(link))
    picture = searcher.network.preparation(decode(photograph(6)))
    assert grid_ids(text) == [hit.id for hit in searcher.search(Query(pictures=(picture,))).hits]
    assert f"<h3>{CLASSES[6 % 4]}</h3>" in text
    assert text.count("<meter") == 3


def test_probabilities_are_calibrated_and_uncertain_pictures_are_none_of_the_classes(
    client, serving, shop_run, searcher
):
    # The catalogue's pictures were embedded with flip_average too.
    assert searcher.network.flip_average
    calibration = calibrate(read_validation_predictions(shop_run, flip_average=True), reject=0.01)
    assert calibration.temperature != pytest.approx(1, abs=0.01), "not trivial"
    black = encoded(Image.new("L", (20, 20), 0))
    for content in (photograph(3), black):
        (prediction,) = upload(client, content, path="/api/search").json()["pictures"]
        logits = searcher.network.logits(searcher.network.preparation(decode(content))[None])
        expected = calibration.probabilities(logits)[0].sort(descending=True).values[:3].tolist()
        assert [each["probability"] for each in prediction["classes"]] == pytest.approx(expected, abs=1e-6)
        assert (prediction["answer"] == "none of these") == (expected[0] < calibration.threshold)
    everything = serving(shop_run, "reject=0.99")
    assert "None of the known classes" in page(everything.get(upload(everything, black).headers["location"]))


@pytest.mark.parametrize(
    ("parameters", "matches"),
    [
        ({"category": "top"}, lambda product: product["category"] == "top"),
        ({"category": ["top", "low"]}, lambda product: product["category"] in ("top", "low")),
        ({"price_min": 20, "price_max": "40.5"}, lambda product: product["price"] and 20 <= product["price"] <= 40.5),
        ({"where": "colour:red"}, lambda product: product["colour"] == "red"),
        (
            {"where": ["colour:red", "colour:blue", "stock:3"]},
            lambda product: product["colour"] != "green" and product["stock"] == 3,
        ),
        ({"where": "stock:2..4"}, lambda product: 2 <= product["stock"] <= 4),
        ({"where": ["stock:5..", "colour:red"]}, lambda product: product["stock"] >= 5 and product["colour"] == "red"),
        (
            {"category": "top", "price_max": 30, "like": "p20"},
            lambda product: product["category"] == "top" and product["price"] <= 30,
        ),
    ],
)
def test_filters_return_exactly_the_matching_products(client, products, parameters, matches):
    expected = {product["id"] for product in products.values() if matches(product)} - {parameters.get("like")}
    assert 0 < len(expected) < 60
    first = client.get("/api/search", params=parameters).json()
    assert first["matching"] == len(expected)
    pages = [client.get("/api/search", params=parameters | {"page": number}).json()["hits"] for number in range(1, 6)]
    assert {hit["id"] for page_hits in pages for hit in page_hits} == expected
    assert grid_ids(page(client.get("/", params=parameters))) == [hit["id"] for hit in first["hits"]]


def test_words_match_titles_and_combine_with_pictures(client, products, searcher):
    text = page(client.get("/", params={"text": "red"}))
    assert grid_ids(text)
    assert all("red" in products[product_id]["title"] for product_id in grid_ids(text))
    combined = hit_ids(client.get("/api/search", params={"text": "red", "like": "p20"}))
    assert combined == [hit.id for hit in searcher.search(Query(text="red", like=("p20",))).hits]
    assert combined != hit_ids(client.get("/api/search", params={"like": "p20"}))


def test_titles_with_all_words_come_first_and_it_is_said_when_there_is_none(client, products):
    title = products["p20"]["title"]
    # The words of a title in another order, after a word that is rare and therefore scores higher.
    words = " ".join(["10", *reversed(title.split()[:2])])
    for like in ({}, {"like": "p30"}):
        found = client.get("/api/search", params={"text": words, **like}).json()
        matches = [all(word in hit["title"].split() for word in words.split()) for hit in found["hits"]]
        assert found["with_all_words"] == sum(matches)
    said = "No product has all the words"
    found = client.get("/api/search", params={"text": f"{title} nosuchword"}).json()
    assert (found["with_all_words"], found["hits"][0]["id"]) == (0, "p20")
    assert said in page(client.get("/", params={"text": f"{title} nosuchword"}))
    assert said not in page(client.get("/", params={"text": title}))
    found = client.get("/api/search", params={"text": "red number"}).json()
    assert found["with_all_words"] == sum("red" in product["title"] for product in products.values())
    assert all("red" in hit["title"] for hit in found["hits"])
    assert client.get("/api/search").json()["with_all_words"] is None


def test_marks_refine_the_search_and_can_be_removed(client, searcher):
    text = page(client.get("/", params={"like": "p20"}))
    more, less = grid_ids(text)[1], grid_ids(text)[5]
    mark = next(link for link in page_links(text) if link.endswith(f"like=p20&like={more}"))
    text = page(client.get(mark))
    mark = next(link for link in page_links(text) if link.endswith(f"unlike={less}"))
    text = page(client.get(mark))
    query = Query(like=("p20", more), unlike=(less,))
    assert grid_ids(text) == [hit.id for hit in searcher.search(query).hits]
    assert {more, less, "p20"}.isdisjoint(grid_ids(text))
    assert f"/?like=p20&like={more}" in page_links(text), "a link that removes the last mark"


def test_the_newest_mark_on_a_product_replaces_the_older(client):
    text = page(client.get("/", params={"like": ["p20", "p21"]}))
    product = next(link for link in page_links(text) if link.startswith("/product?id=p21"))
    assert "/?like=p20&unlike=p21" in page_links(page(client.get(product)))


def test_product_page_shows_all_columns_and_links_to_further_searches(client, products):
    text = page(client.get("/product", params={"id": "p20", "like": "p30", "category": "top"}))
    for value in ("p20", "blue top number 20", "30.00", "blue", "6"):
        assert f">{value}<" in text
    similar = grid_ids(text)
    assert len(similar) == 12
    assert "p20" not in similar
    assert "/?like=p30&category=top" in page_links(text), "back to the results"
    assert "/?like=p20" in page_links(text), "a search of its own"
    assert "/?like=p30&like=p20&category=top" in page_links(text), "a mark in the search that led here"
    page(client.get(next(link for link in page_links(text) if link.startswith("/product?"))))


@pytest.mark.parametrize("odd", ODD_IDS)
def test_products_with_any_id_can_be_opened_and_marked(client, odd):
    text = page(client.get("/product", params={"id": odd}))
    mark = next(link for link in page_links(text) if link == f"/?{urlencode({'like': odd})}")
    assert odd not in grid_ids(page(client.get(mark)))
    record = client.get("/api/product", params={"id": odd}).json()
    assert record["id"] == odd
    thumbnail = client.get(record["thumbnail"])
    assert Image.open(io.BytesIO(thumbnail.content)).size == (20, 20)


def test_titles_and_queries_are_escaped(client):
    for link in ("/product?id=p05", "/", f"/?{urlencode({'text': '<script>alert(1)</script>'})}"):
        text = page(client.get(link))
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in page(client.get("/product?id=p05"))


def test_a_form_without_a_picture_becomes_a_link_without_empty_fields(client):
    fields = {"text": "red", "price_min": "", "price_max": "40", "category": ["top", "low"], "like": "p20"}
    response = client.post("/", data=fields, files=[("picture", ("", b""))])
    assert response.status_code == 303
    assert response.headers["location"] == "/?like=p20&text=red&category=top&category=low&price_max=40"


def test_a_new_picture_starts_a_new_search_with_the_same_filters(client):
    link = upload(client, photograph(0), photograph(1), like="p20", category="top", page="3").headers["location"]
    names = [name for name, _ in parse_qsl(urlsplit(link).query)]
    assert names == ["picture", "picture", "category"]
    assert len(client.get(link).text) > 1000


def test_pages_show_each_product_once_and_keep_the_query(client, products):
    ids, link = [], "/?category=top&category=low&category=middle"
    while link:
        text = page(client.get(link))
        ids += grid_ids(text)
        pages = (each for each in page_links(text) if "page=" in each)
        link = next((each for each in pages if f'href="{html.escape(each)}" rel="next"' in text), None)
        assert link is None or link.startswith("/?category=top&category=low&category=middle&page=")
    assert sorted(ids) == sorted(each for each, product in products.items() if product["category"] != "bottom")


def test_the_form_keeps_filters_without_a_check_box(client):
    text = page(client.get("/", params={"where": ["stock:3", "colour:red"], "category": "gone"}))
    assert '<input type="hidden" name="where" value="stock:3">' in text
    assert '<input type="hidden" name="category" value="gone">' in text
    assert 'type="hidden" name="where" value="colour:red"' not in text


def test_product_page_links_back_to_its_page_of_results(client):
    results = page(client.get("/?category=top&category=low&page=2"))
    link = next(link for link in page_links(results) if "/product" in link)
    assert "/?category=top&category=low&page=2" in page_links(page(client.get(link)))


def test_a_search_without_results_suggests_other_searches(client):
    text = page(client.get("/?text=zzz&category=top"))
    assert "No products found" in text
    assert "/?text=zzz" in page_links(text)
    assert "Back to the first page" in page(client.get("/?category=top&page=99"))


def test_pages_load_nothing_from_other_hosts_and_contain_no_inline_code(client):
    result = upload(client, photograph(2)).headers["location"]
    for link in (result, "/", "/product?id=p20", "/developer", "/api", "/none"):
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


# Developer page


def test_developer_page_shows_catalogue_latency_and_projection(client, shop_run):
    client.get("/?like=p20")
    text = page(client.get("/developer"))
    for expected in (">60<", str(shop_run.path), "calibrated on the run", "p95 ms", "Embed", "evaluate_search"):
        assert expected in text
    points = text.partition('class="scatter"')[2].partition("</svg>")[0].count("<circle")
    assert points == 60
    assert all(f"</svg> {name} " in text for name in CLASSES)


def test_columns_whose_values_no_form_can_send_have_no_filter(shop_run):
    view = CatalogueState(shop_run, Catalogue(str(shop_run.catalogue)), reject=0.01).require_view()
    for name, values in (
        ("size: eu", ["38", "40"]),
        ("described", ["x" * 61, "short"]),
        ("lines", ["one\ntwo", "one"]),
        ("season", ["summer", "all\u00a0year"]),
    ):
        view.snapshot.attributes = view.snapshot.attributes.append_column(name, pa.array(values * 30))
    filters = CatalogueView(view.searcher, view.predictor).filters
    assert [each.column for each in filters] == ["category", "colour", "season"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1299.95, "1,299.95"), (4006381333931.0, "4006381333931"), (0.1, "0.1"), (38, "38"), (None, "not specified")],
)
def test_numbers_of_a_product_are_shown_in_full(value, expected):
    assert format_attribute(value) == expected


def test_the_largest_categories_have_check_boxes_and_all_are_counted(shop_run, monkeypatch):
    monkeypatch.setattr("fashion_cnn.retrieval.web.state._MAX_CATEGORIES", 3)
    view = CatalogueState(shop_run, Catalogue(str(shop_run.catalogue)), reject=0.01).require_view()
    counts = view.snapshot.attributes["category"].value_counts().to_pylist()
    largest = sorted(counts, key=lambda each: -each["counts"])[:3]
    assert view.category_count == 4
    assert sorted(count for _, count in view.categories.counts) == sorted(each["counts"] for each in largest)


def test_developer_page_shows_evaluation_results(client, shop_run):
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
        for expected in (
            "200 test images as queries, 60,000 images in the catalogue",
            ">98.8%<",
            ">50.0%<",
            ">25.0%<",
            ">shot noise<",
            ">75.0%<",
        ):
            assert expected in text
        for damaged in ("{", "[]", '{"queries": "x"}'):
            (folder / "measures.json").write_text(damaged)
            assert "Not evaluated yet" in page(client.get("/developer"))
    finally:
        shutil.rmtree(folder.parent)


# API


def test_api_and_page_return_the_same_products_and_the_api_links_to_the_page(client, products):
    response = upload(client, photograph(5), path="/api/search", category="middle", price_min="12").json()
    assert response["matching"] == sum(
        product["category"] == "middle" and (product["price"] or 0) >= 12 for product in products.values()
    )
    assert response["pictures"][0]["answer"] == "middle"
    first = response["hits"][0]
    assert first.keys() >= {"id", "title", "category", "price", "similarity", "colour", "stock", "thumbnail"}
    assert grid_ids(page(client.get(response["link"]))) == [hit["id"] for hit in response["hits"]]
    get = client.get("/api" + response["link"].replace("/?", "/search?"))
    assert hit_ids(get) == [hit["id"] for hit in response["hits"]]
    assert response["milliseconds"].keys() == {"decode", "embed", "search", "attributes and thumbnails"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("txt=shirt", "Unknown parameter txt. Did you mean text?"),
        ("catgory=top", "Unknown parameter catgory. Did you mean category?"),
        ("utterly=other", "Unknown parameter utterly."),
        ("top_k=0", "Invalid value of top_k"),
    ],
)
def test_the_api_names_unknown_and_invalid_parameters(client, query, message):
    response = client.get(f"/api/search?{query}")
    assert response.status_code == 422
    assert message in response.json()["error"]


def test_the_api_returns_top_k_products_per_page(client):
    first = client.get("/api/search?top_k=3").json()["hits"]
    second = client.get("/api/search?top_k=3&page=2").json()["hits"]
    assert len({hit["id"] for hit in first + second}) == 6
    response = client.post("/api/search", files={"picture": photograph(0)}, data={"txt": "shirt"})
    assert response.status_code == 422


def test_the_api_accepts_files_as_unlike_pictures(client, searcher):
    files = [("picture", ("a.png", photograph(1))), ("unlike_picture", ("b.png", photograph(2)))]
    response = client.post("/api/search", files=files)
    like, unlike = (searcher.network.preparation(decode(photograph(number))) for number in (1, 2))
    expected = searcher.search(Query(pictures=(like,), unlike_pictures=(unlike,)))
    assert hit_ids(response) == [hit.id for hit in expected.hits]
    text = page(client.get(response.json()["link"]))
    assert "Not like this: " in text
    assert grid_ids(text) == hit_ids(response)


def batch(client, queries, files=None):
    parts = {name: (name, content) for name, content in (files or {}).items()}
    return client.post("/api/search/batch", files={"queries": (None, json.dumps(queries)), **parts})


def test_a_batch_answers_each_query_as_a_request_of_its_own(client):
    files = {"first": photograph(0), "second": photograph(1)}
    queries = [
        {"picture_file": "first", "top_k": 5},
        {"text": "red", "category": CLASSES[0], "price_max": 40},
        {"picture_file": ["second"], "unlike_picture_file": "first", "where": ["colour:blue"], "page": 2, "top_k": 2},
        {"like": ["p10"]},
        {"picture_file": "first", "box": "0,0,0.5,0.5"},
    ]
    response = batch(client, queries, files)
    openapi.BatchResponse.model_validate(response.json())
    answers = response.json()["answers"]
    assert [(answer["status"], answer["error"]) for answer in answers] == [(200, None)] * 5
    second = [("picture", ("b", files["second"])), ("unlike_picture", ("a", files["first"]))]
    singles = [
        client.post("/api/search", files={"picture": files["first"]}, data={"top_k": 5}),
        client.get("/api/search", params={"text": "red", "category": CLASSES[0], "price_max": 40}),
        client.post("/api/search", files=second, data={"where": "colour:blue", "page": 2, "top_k": 2}),
        client.get("/api/search?like=p10"),
        client.post("/api/search", files={"picture": files["first"]}, data={"box": "0,0,0.5,0.5"}),
    ]
    assert singles[-1].json()["link"] != singles[0].json()["link"], "the part is another picture"
    for answer, single in zip(answers, singles, strict=True):
        expected = single.json() | {"milliseconds": answer["result"]["milliseconds"]}
        assert answer["result"] == expected


def test_an_error_in_a_query_of_a_batch_leaves_the_others_alone(client):
    queries = [
        {"picture_file": "broken"},
        {"picture_file": "missing"},
        {"like": "none"},
        {"txt": "red"},
        {"price_min": "cheap"},
        {"text": {"red": 1}},
        {"where": "stock"},
        "red",
        {"text": "red", "top_k": 3},
    ]
    answers = batch(client, queries, {"broken": b"no picture"}).json()["answers"]
    assert [answer["status"] for answer in answers] == [415, 422, 404, 422, 422, 422, 422, 422, 200]
    expected = ("The picture", "missing", "none", "text?", "price_min", "text", "stock", "JSON object")
    for answer, part in zip(answers, expected, strict=False):
        assert part in answer["error"]
        assert answer["result"] is None
    assert len(answers[-1]["result"]["hits"]) == 3


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({}, "Send a field queries"),
        ({"queries": "red"}, "JSON array"),
        ({"queries": "[]"}, "1 to 20"),
        ({"queries": json.dumps([{"text": "red"}] * 21)}, "1 to 20"),
        ({"queries": "[" * 100_000}, "JSON array"),
        ({"queries": '[{"text": "red"}]', "text": "red"}, "Unknown parameter text"),
        ({"queries": '[{"picture_file": "b"}]'}, "No query names the file a"),
    ],
)
def test_a_batch_that_is_no_list_of_queries_is_refused_as_a_whole(client, data, part):
    response = client.post("/api/search/batch", data=data, files={"a": ("a.png", photograph(0))})
    assert response.status_code == 422
    assert part in response.json()["error"]


def test_each_query_of_a_batch_counts_as_a_request(shop_run, serving):
    client = serving(shop_run, "limits.requests_per_minute=3")
    answers = batch(client, [{"text": "red"}] * 4).json()["answers"]
    assert [answer["status"] for answer in answers] == [200, 200, 200, 429]
    assert client.get("/api/status").status_code == 429


def test_the_openapi_description_lists_all_routes_and_is_readable_offline(client):
    described = client.get("/openapi.json").json()
    monitoring = {"/healthz", "/readyz", "/metrics"}
    search = {"/api/search", "/api/search/batch", "/api/items"}
    assert set(described["paths"]) == search | {"/api/product", "/api/thumbnail", "/api/status"} | monitoring | {
        "/api/products/{product_id}"
    }
    text = page(client.get("/api"))
    for path, methods in described["paths"].items():
        for method in methods:
            assert f'<span class="method">{method.upper()}</span> {path}<' in text
    for name in ("unlike_picture", "price_max", "where", "page"):
        assert f"<code>{name}</code>" in text
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_status_returns_the_size_and_version_of_the_catalogue(client, shop_run, searcher):
    status = client.get("/api/status").json()
    assert (status["products"], status["version"]) == (60, searcher.snapshot.version)
    assert (status["problem"], status["probabilities_calibrated"]) == (None, True)
    assert str(shop_run.path) not in json.dumps(status), "no path of the server"


def test_responses_are_as_the_openapi_description_says(client):
    described = client.get("/openapi.json").json()
    for path, link in {"/api/search": "?like=p10", "/api/product": "?id=p10", "/api/status": ""}.items():
        content = described["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        name = content["schema"]["$ref"].rpartition("/")[2]
        response = client.get(path + link).json()
        model = getattr(openapi, name)
        assert model.model_validate(response).model_dump(by_alias=True) == response
    refused = client.get("/api/product?id=none")
    assert openapi.ErrorResponse.model_validate(refused.json()).status == refused.status_code == 404


# Monitoring


def figures(client):
    lines = (line for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_health_readiness_and_figures_of_requests(run_copy, serving):
    shutil.rmtree(run_copy.catalogue)
    client = serving(run_copy, "refresh_seconds=0.05")
    assert client.get("/healthz").json() == {"status": "ok"}
    assert (client.get("/readyz").status_code, figures(client)["fashion_cnn_ready"]) == (503, 0)
    make_catalogue(run_copy, only=20)
    wait_until(lambda: client.get("/readyz").status_code == 200)
    client.get("/api/search?text=secret")
    client.get("/api/product?id=none")
    client.get("/secret")
    after = figures(client)
    assert (after["fashion_cnn_ready"], after["fashion_cnn_products"]) == (1, 20)
    assert after['fashion_cnn_requests_total{path="/api/search",status="200"}'] == 1
    assert after['fashion_cnn_requests_total{path="/api/product",status="404"}'] == 1
    assert after['fashion_cnn_requests_total{path="other",status="404"}'] == 1
    assert after['fashion_cnn_request_seconds_count{path="/api/search"}'] == 1
    assert "secret" not in client.get("/metrics").text


def test_requests_are_logged_on_demand_without_their_queries(shop_run, serving, capfd):
    client = serving(shop_run, "log_requests=true")
    client.get("/api/search?text=secret")
    client.post("/", files={"picture": ("secret.png", photograph(0))})
    client.get("/static/style.css")
    client.get("/secret")
    text = ""

    def four_lines():  # a line follows its response
        nonlocal text
        text += capfd.readouterr().err
        return text.count("\n") == 4

    wait_until(four_lines)
    lines = text.splitlines()
    assert "secret" not in text
    shown = [re.sub(r"^\S+ (.*) \d+ ms$", r"\1", line) for line in lines]
    assert sorted(shown) == [
        "127.0.0.1 GET /api/search 200",
        "127.0.0.1 GET /static 200",
        "127.0.0.1 GET other 404",
        "127.0.0.1 POST / 303",
    ]


# Access


KEYS = ("a-key-of-sixteen-characters", "another-key-of-sixteen-characters")


@pytest.fixture(scope="module")
def with_keys(shop_run, serving, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# shop\n{KEYS[0]}\n\n  # a comment that is indented\n{KEYS[1]}\n")
    return serving(shop_run, f"api_keys='{file}'")


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({}, False),
        ({"authorization": f"Bearer {KEYS[0]}"}, True),
        ({"authorization": f"bearer {KEYS[1]}"}, True),
        ({"x-api-key": KEYS[1]}, True),
        ({"authorization": KEYS[0]}, False),
        ({"authorization": f"Basic {KEYS[0]}"}, False),
        ({"authorization": f"Bearer {KEYS[0]}x"}, False),
        ({"x-api-key": ""}, False),
        ({"x-api-key": "# shop"}, False),
        ({"x-api-key": "# a comment that is indented"}, False),
    ],
)
def test_api_and_figures_need_a_key_where_there_are_any(with_keys, headers, accepted):
    for link in ("/api/search?text=red", "/api/status", "/metrics", "/openapi.json", "/api/none"):
        response = with_keys.get(link, headers=headers)
        assert (response.status_code != 401) == accepted, link
        if not accepted:
            assert response.headers["www-authenticate"] == "Bearer"
            assert "An API key is needed" in response.text
    upload_status = with_keys.post(
        "/api/search", files={"picture": ("a.png", photograph(0))}, headers=headers
    ).status_code
    assert upload_status == (200 if accepted else 401)
    for link in ("/", "/healthz", "/readyz", "/static/style.css", "/api/thumbnail?id=p10"):
        assert with_keys.get(link, headers=headers).status_code == 200, link


def test_the_page_of_the_api_says_if_a_key_is_needed(client, with_keys):
    for server, needs_key in ((client, False), (with_keys, True)):
        text = page(server.get("/api"))
        assert ("without authentication" in text) != needs_key
        assert text.count("-H &#39;X-API-Key: KEY&#39;") + text.count("-H 'X-API-Key: KEY'") == 2 * needs_key


def test_requests_of_a_client_beyond_the_limit_get_429(shop_run, serving, tmp_path):
    (tmp_path / "keys").write_text("\n".join(KEYS))
    client = serving(shop_run, "limits.requests_per_minute=3", f"api_keys='{tmp_path / 'keys'}'")
    by_key = [{"x-api-key": key} for key in KEYS]
    assert [client.get("/api/status", headers=by_key[0]).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = client.get("/api/status", headers=by_key[0])
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.json() == {"error": "Too many requests: the limit is 3 a minute. Try again later.", "status": 429}
    assert client.get("/api/status", headers=by_key[1]).status_code == 200, "another client"
    # Requests without a key count by address; proxies on this machine name that of their client.
    visitors = [{"x-forwarded-for": f"192.0.2.{number}"} for number in (1, 2)]
    assert [client.get("/", headers=visitors[0]).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert client.get("/", headers=visitors[1]).status_code == 200
    for link in ("/healthz", "/readyz", "/static/style.css"):
        assert client.get(link, headers=visitors[0]).status_code == 200


def test_clients_in_ipv4_are_told_apart_where_the_server_listens_in_ipv6(shop_run):
    app = build_app(compose("serve", [f"run='{shop_run.path}'", "limits.requests_per_minute=1"]), "::1")

    async def statuses(*addresses):
        responses = []
        for address in addresses:
            transport = httpx.ASGITransport(app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                responses.append((await client.get("/api/status")).status_code)
        return responses

    assert anyio.run(statuses, *(f"::ffff:192.0.2.{number}" for number in (1, 2, 1))) == [200, 200, 429]
    assert anyio.run(statuses, "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1") == [200, 429, 200], "by network"


def test_the_allowance_of_a_client_grows_back(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    allowance = Allowance(60)
    assert sum(allowance.use("a") == 0 for _ in range(100)) == 60
    assert 0 < allowance.use("a") <= 1
    now[0] = 2.5
    assert [allowance.use("a") == 0 for _ in range(3)] == [True, True, False]
    for number in range(30_000):
        allowance.use(f"client {number}")
    assert allowance.use("a") > 0, "the clients that have used the most are kept"


# Changes over HTTP

WRITER = {"x-api-key": KEYS[0]}
READER = {"x-api-key": KEYS[1]}


@pytest.fixture
def changing(run_copy, serving):
    """Function that starts a server whose catalogue may be changed."""
    file = run_copy.path / "keys"
    file.write_text(f"{KEYS[0]} write\n{KEYS[1]}\n")
    return lambda *overrides: serving(run_copy, f"api_keys='{file}'", "writable=true", *overrides)


def product_row(run, product_id):
    catalogue = Catalogue(str(run.catalogue))
    rows = catalogue.open().search().limit(None).to_list()
    return next((row for row in rows if row["id"] == product_id), None)


def put(client, product_id, fields, picture=None, headers=WRITER):
    link = f"/api/products/{product_id}"
    if picture is None:
        return client.put(link, json=fields, headers=headers)
    return client.put(link, data=fields, files={"picture": ("a.png", picture)}, headers=headers)


def test_a_product_put_over_http_is_indexed_as_by_the_command_and_found_at_once(run_copy, changing):
    client, other = changing(), changing("refresh_seconds=0.05")
    picture = (run_copy.path / "photos" / "10.png").read_bytes()
    response = put(client, "new/%C3%BC 1", {"title": "A new one", "price": "19,90", "stock": "3"}, picture)
    assert response.status_code == 201, response.text
    change = openapi.ProductChange.model_validate(response.json())
    assert (change.id, change.created) == ("new/ü 1", True)
    new, indexed = product_row(run_copy, "new/ü 1"), product_row(run_copy, "p10")
    for column in ("vector", "confidence"):
        assert new[column] == pytest.approx(indexed[column], abs=1e-5), column
    for column in ("thumbnail", "seen_as"):
        assert new[column] == indexed[column], column
    assert (new["title"], new["price"], new["stock"], new["colour"]) == ("A new one", 19.9, 3, None)
    assert new["category"] == new["seen_as"], "predicted, since none was sent"

    def found(server):
        hits = server.post("/api/search", files={"picture": picture}, data={"top_k": 2}, headers=READER).json()
        return {"new/ü 1", "p10"} == {hit["id"] for hit in hits["hits"]}

    assert found(client)
    wait_until(lambda: found(other))
    text = client.get("/api/search?text=new", headers=READER).json()
    assert [hit["id"] for hit in text["hits"]] == ["new/ü 1"]
    assert text["version"] == change.version


def test_columns_are_changed_over_http_and_the_table_of_the_shop_restores_them(run_copy, changing):
    client = changing()
    before = product_row(run_copy, "p10")
    response = put(client, "p10", {"price": 7, "colour": "teal", "stock": None, "category": ""})
    assert (response.status_code, response.json()["created"]) == (200, False)
    after = product_row(run_copy, "p10")
    changed = {"price": 7.0, "colour": "teal", "stock": None, "category": before["seen_as"], "key": after["key"]}
    assert after == before | changed
    assert client.get("/api/product?id=p10", headers=READER).json()["colour"] == "teal"
    put(client, "p11", {"title": "Other"}, photograph(0))
    assert product_row(run_copy, "p11")["vector"] != product_row(run_copy, "p10")["vector"]
    assert product_row(run_copy, "p11")["colour"] == "blue", "kept"
    make_catalogue(run_copy)
    assert product_row(run_copy, "p10") == before


def test_a_product_is_removed_over_http(run_copy, changing):
    client = changing()
    response = client.delete("/api/products/p10", headers=WRITER)
    assert response.status_code == 200, response.text
    assert client.get("/api/product?id=p10", headers=READER).status_code == 404
    assert client.get("/api/status", headers=READER).json()["products"] == 59
    assert product_row(run_copy, "p10") is None
    again = client.delete("/api/products/p10", headers=WRITER)
    assert (again.status_code, "p10" in again.json()["error"]) == (404, True)


def test_changes_need_a_writable_server_and_a_key_that_may_write(run_copy, changing, client, with_keys):
    own = changing()
    for headers, status in ((WRITER, 200), (READER, 403), ({}, 401), ({"x-api-key": f"{KEYS[0]} write"}, 401)):
        assert put(own, "p10", {"price": 5}, headers=headers).status_code == status
    for server in (client, with_keys):
        assert put(server, "p10", {"price": 5}).status_code == 403
        refused = server.delete("/api/products/p10", headers=WRITER)
        assert (refused.status_code, "writable=true" in refused.json()["error"]) == (403, True)
    from_page = own.delete("/api/products/p10", headers=WRITER | {"sec-fetch-site": "cross-site"})
    assert from_page.status_code == 403
    assert product_row(run_copy, "p10")["price"] == 5
    refused = own.get("/api/products/p10", headers=WRITER)
    assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE, OPTIONS, PUT")


@pytest.mark.parametrize(
    ("product_id", "content", "status", "message"),
    [
        ("new", {"json": {"title": "A"}}, 422, "needs a picture"),
        ("p10", {"json": {"colr": "red"}}, 422, "Did you mean colour?"),
        ("p10", {"json": {"vector": [1.0]}}, 422, "no column vector"),
        ("p10", {"json": {"id": "p11"}}, 422, "no column id"),
        ("p10", {"json": {"price": "cheap"}}, 422, "price=cheap"),
        ("p10", {"json": {"price": True}}, 422, "price=True"),
        ("p10", {"json": {"stock": 1.5}}, 422, "stock=1.5"),
        ("p10", {"json": {"stock": [1]}}, 422, "stock=[1]"),
        ("p10", {"json": {"title": "a" * 100_001}}, 422, "100,000 bytes"),
        ("p10", {"json": [1]}, 400, "JSON object"),
        ("p10", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "JSON object"),
        ("p10", {"files": {"picture": b"no picture"}}, 415, "is not a picture"),
        ("p10", {"files": {"image": photograph(0)}}, 422, "Unknown parameter image"),
        ("p10", {"files": [("picture", photograph(0)), ("picture", photograph(1))]}, 422, "one picture"),
        ("p" * 1001, {"json": {"price": 1}}, 422, "product_id"),
    ],
)
def test_changes_that_cannot_be_made_are_refused_with_a_reason(changed_server, product_id, content, status, message):
    headers = WRITER | content.get("headers", {})
    response = changed_server.put(f"/api/products/{product_id}", **content | {"headers": headers})
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


@pytest.fixture(scope="module")
def changed_server(shop_run, serving, tmp_path_factory):
    """A server for requests none of which changes its catalogue."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{KEYS[0]} write\n")
    return serving(shop_run, f"api_keys='{file}'", "writable=true")


def test_changes_beside_searches_and_an_indexing_are_all_made(run_copy, changing, monkeypatch):
    client = changing()
    pictures = [photograph(number) for number in range(6)]

    def change(number):
        response = put(client, f"new{number}", {"title": f"new {number}"}, pictures[number])
        search = client.get("/api/search?text=number&like=p10", headers=READER)
        return response.status_code, search.status_code

    with ThreadPoolExecutor(7) as pool:
        indexing = pool.submit(make_catalogue, run_copy, only=50)
        assert set(pool.map(change, range(6))) == {(201, 200)}
        indexing.result()
    assert len(client.get("/api/search?text=new", headers=READER).json()["hits"]) in range(7), "not removed or pruned"
    put(client, "last", {}, pictures[0])
    assert product_row(run_copy, "last")["title"] == "last"
    monkeypatch.setattr(catalogue_module, "_LOCK_SECONDS", 0.05)
    with Catalogue(str(run_copy.catalogue)).transaction():
        busy = put(client, "p10", {"price": 1})
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "10")
    assert "being indexed" in busy.json()["error"]


def test_other_websites_may_use_the_api_only_if_they_are_named(shop_run, serving):
    client = serving(shop_run, "allow_origins=['https://shop.example']")
    files = {"picture": ("a.png", photograph(0))}
    for origin, is_named in (("https://shop.example", True), ("https://evil.example", False)):
        headers = {"origin": origin, "sec-fetch-site": "cross-site"}
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
        responses = [
            client.options("/api/search", headers=headers | asked),
            client.get("/api/search?text=red", headers=headers),
            client.post("/api/search", files=files, headers=headers),
        ]
        assert [response.headers.get("access-control-allow-origin") for response in responses] == (
            [origin] * 3 if is_named else [None] * 3
        )
        assert responses[2].status_code == (200 if is_named else 403)
    thumbnail = client.get("/api/thumbnail?id=p10").headers
    assert thumbnail["cross-origin-resource-policy"] == "cross-origin"
    assert client.get("/api/status").headers["cross-origin-resource-policy"] == "same-origin"


def test_host_names_may_be_given(shop_run, serving):
    client = serving(shop_run, "allow_hosts=[Search.Shop.example]")
    assert client.get("/", headers={"host": "search.shop.example:443"}).status_code == 200
    assert client.get("/", headers={"host": "localhost"}).status_code == 400
    assert client.get("/healthz", headers={"host": "10.0.0.7"}).status_code == 200


# Settings of what shoppers see


def test_hidden_columns_are_neither_shown_nor_searched(shop_run, serving):
    client = serving(shop_run, "hidden_columns=[stock]")
    product = client.get("/api/product?id=p10").json()
    assert "stock" not in product
    assert product["colour"] == "green"
    assert "stock" not in client.get("/product?id=p10").text.lower()
    assert "stock" not in client.get("/").text.lower()
    for where in ("stock:3", "stock:1.."):
        assert client.get(f"/api/search?where={where}").status_code == 422


def test_pages_show_the_currency_and_no_similarity_or_developer_page_if_these_are_off(shop_run, serving):
    client = serving(shop_run, "currency='€'", "show_similarity=false", "developer=false", "samples=catalogue")
    text = page(client.get("/?like=p10"))
    assert "Similarity" not in text
    assert re.search(r"\d\.00\N{NO-BREAK SPACE}€", text)
    assert "/developer" not in text
    assert client.get("/developer").status_code == 404
    assert "like=" in page(client.get("/")).partition('class="samples"')[2], "samples are products"


# Changes of the catalogue


@pytest.fixture
def run_copy(shop_run, tmp_path):
    """A copy, to change."""
    return Run(shutil.copytree(shop_run.path, tmp_path / "run"))


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_newer_catalogue_version_is_loaded_and_announced(run_copy, serving):
    client = serving(run_copy, "refresh_seconds=0.05")
    assert "catalogue was updated" not in client.get("/").text
    before = client.get("/api/status").json()["version"]
    make_catalogue(run_copy, only=30)
    wait_until(lambda: client.get("/api/status").json()["products"] == 30)
    assert client.get("/api/status").json()["version"] > before
    text = page(client.get("/"))
    assert "The catalogue was updated" in text
    assert "30 products" in text
    assert client.get("/product?id=p40").status_code == 404


def test_a_recreated_catalogue_with_the_same_version_number_is_loaded(run_copy, serving):
    # Both get to the same version number.
    shutil.rmtree(run_copy.catalogue)
    make_catalogue(run_copy, only=20)
    client = serving(run_copy, "refresh_seconds=0.05")
    version = client.get("/api/status").json()["version"]
    shutil.rmtree(run_copy.catalogue)
    make_catalogue(run_copy, only=30)
    wait_until(lambda: client.get("/api/status").json().items() >= {"products": 30, "version": version}.items())


def test_a_catalogue_of_another_network_is_read_once_and_the_loaded_version_stays(run_copy, monkeypatch):
    state = CatalogueState(run_copy, Catalogue(str(run_copy.catalogue)), reject=0.01)

    class Another(TrainedNetwork):
        identity = "another"

    products = products_from_files(str(run_copy.path / "photos"), None, lambda done, total: None)
    index_products(products, state.catalogue, Another(run_copy, flip_average=True), rebuild=True)
    read = []
    monkeypatch.setattr(
        "fashion_cnn.retrieval.web.state.Snapshot", lambda *catalogue: read.append(catalogue) or Snapshot(*catalogue)
    )
    for _ in range(3):
        state.refresh()
        assert "another network" in state.problem
    assert len(read) == 1
    assert len(state.require_view().snapshot) == 60


def test_concepts_of_the_network_before_are_not_used_with_another(run_copy, monkeypatch):
    """A rebuild with other settings of photographs changes the network beside which the concepts are stored."""
    teach_concept(run_copy)
    state = CatalogueState(run_copy, Catalogue(str(run_copy.catalogue)), reject=0.01)
    assert state.require_view().concept_names == ["a stripe"]

    class Another(TrainedNetwork):
        identity = "another"

    another = Another(run_copy, flip_average=False)
    monkeypatch.setattr("fashion_cnn.retrieval.web.state.load_network", lambda *arguments, **options: another)
    products = products_from_files(str(run_copy.path / "photos"), None, lambda done, total: None)
    index_products(products, state.catalogue, another, rebuild=True)
    for _ in range(2):
        state.refresh()
        assert "was taught to another network" in state.problem
        view = state.require_view()
        assert view.concept_names == []
        picture = another.preparation(decode(photograph(0)))
        result = search_catalogue(view, SearchQuery(), top_k=3, uploads={"picture": [picture]})
        assert result.predictions[0].concepts == ()
    shutil.rmtree(run_copy.concepts)
    state.refresh()
    assert state.problem is None


def test_a_network_that_could_not_be_loaded_is_tried_again_before_products_are_read(run_copy, monkeypatch):
    """The catalogue was rebuilt, and its network exported to ONNX later."""
    state = CatalogueState(run_copy, Catalogue(str(run_copy.catalogue)), reject=0.01)
    products = products_from_files(str(run_copy.path / "photos"), None, lambda done, total: None)
    index_products(products, state.catalogue, TrainedNetwork(run_copy, flip_average=False), rebuild=True)
    newest = state.catalogue.table_version()

    def missing(*arguments, **options):
        raise UserError("network.onnx is missing")

    with monkeypatch.context() as patch:
        patch.setattr("fashion_cnn.retrieval.web.state.load_network", missing)
        patch.setattr("fashion_cnn.retrieval.web.state.Snapshot", None)
        for _ in range(2):
            state.refresh()
            assert state.problem == "network.onnx is missing"
    assert state.require_view().snapshot.table_version != newest
    state.refresh()
    assert state.problem is None
    assert state.require_view().snapshot.table_version == newest


def test_visitors_are_told_no_paths_of_the_server(run_copy, serving, capfd, monkeypatch):
    client = serving(run_copy, "developer=false", "refresh_seconds=0.05")

    def problem():
        text = page(client.get("/")) + client.get("/api/status").text
        assert str(run_copy.path) not in text
        return re.findall(r"The newest \w+ cannot be loaded. The server(?:'|&#39;)s log has the reason.", text)

    assert not problem()
    run_copy.concepts.mkdir()
    (run_copy.concepts / "concept-broken.npz").write_bytes(b"no archive")
    wait_until(problem)
    assert ["concepts" in each for each in problem()] == [True, True]
    assert f"{run_copy.concepts / 'concept-broken.npz'} is damaged" in capfd.readouterr().err
    shutil.move(run_copy.catalogue, run_copy.path / "elsewhere")
    wait_until(lambda: problem() and ["version" in each for each in problem()] == [True, True])
    assert str(run_copy.catalogue) in capfd.readouterr().err

    def damaged(*arguments, **options):
        raise DamagedCatalogueError(str(run_copy.catalogue), "a file is cut")

    with monkeypatch.context() as patch:
        patch.setattr(web_service, "search_catalogue", damaged)
        for link in ("/api/search", "/"):
            response = client.get(link)
            assert response.status_code == 503
            assert "log has the reason" in response.text
            assert str(run_copy.path) not in response.text
    text = page(serving(run_copy, "developer=false").get("/"), 503)
    assert str(run_copy.path) not in text
    assert "No catalogue yet" in text


def test_without_a_catalogue_the_page_explains_how_to_create_one_and_then_loads_it(run_copy, serving):
    shutil.rmtree(run_copy.catalogue)
    client = serving(run_copy, "refresh_seconds=0.05")
    response = client.get("/")
    assert "python -m fashion_cnn.index" in page(response, 503)
    assert response.headers["retry-after"]
    api = client.get("/api/search")
    assert api.status_code == 503
    assert "fashion_cnn.index" in api.json()["error"]
    assert client.get("/api/status").json()["products"] is None
    make_catalogue(run_copy, only=20)
    wait_until(lambda: client.get("/").status_code == 200)
    assert len(grid_ids(client.get("/").text)) == 12


def teach_concept(run):
    """A concept of two test images, in the run's directory."""
    pictures = [Image.open(io.BytesIO(photograph(number, 28))) for number in (0, 4)]
    network = TrainedNetwork(run, flip_embeddings=True)
    concepts = Concepts(run, network.identity)
    concepts.save_background(fit_background(network, TinyDataModule(val_size=32, mean=[0.5], std=[0.25])))
    looked = network.outputs(torch.stack([network.preparation(picture) for picture in pictures]))
    concepts.save(learn("a stripe", looked.embeddings, concepts.background, false_alarms=0.3))
    return concepts


def test_a_damaged_concept_is_reported_and_loaded_concepts_stay(run_copy, serving):
    client = serving(run_copy, "refresh_seconds=0.05")

    def knows():
        return "Recognised concepts: a stripe" in page(client.get(upload(client, photograph(0)).headers["location"]))

    assert not knows()
    teach_concept(run_copy)
    wait_until(knows)
    broken = run_copy.concepts / "concept-broken.npz"
    broken.write_bytes(b"no archive")
    wait_until(lambda: client.get("/api/status").json()["problem"])
    text = page(client.get("/"))
    assert "The newest concepts cannot be loaded: " in text
    assert "concept-broken.npz is damaged" in text
    assert "stays in use" not in text, "the version is the newest"
    assert knows()
    np.savez(broken, something=1)
    make_catalogue(run_copy, only=30)
    wait_until(lambda: client.get("/api/status").json()["products"] == 30)
    assert "it holds no network" in client.get("/api/status").json()["problem"]
    assert knows()
    broken.unlink()
    wait_until(lambda: not client.get("/api/status").json()["problem"])


def test_concepts_are_chosen_on_the_page_and_in_the_api(run_copy, serving):
    concepts = teach_concept(run_copy)
    client = serving(run_copy)
    text = page(client.get("/"))
    assert '<input type="checkbox" name="concept" value="a stripe">' in text
    answer = client.get("/api/search", params={"concept": "a stripe"}).json()
    searcher = Searcher(Snapshot(Catalogue(str(run_copy.catalogue))), TrainedNetwork(run_copy, flip_average=True))
    expected = searcher.search(Query(concepts=(concepts.direction("a stripe"),))).hits
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in expected]
    text = page(client.get("/", params={"concept": "a stripe", "text": "red"}))
    assert '<input type="checkbox" name="concept" value="a stripe" checked>' in text
    assert 'type="hidden" name="concept"' not in text
    assert "Concept: a stripe" in text
    assert "/?text=red" in page_links(text), "the chip removes the concept"
    response = client.post("/", data={"concept": "a stripe"}, files={"picture": ("", b"")})
    assert parse_qs(urlsplit(response.headers["location"]).query) == {"concept": ["a stripe"]}
    missing = client.get("/api/search", params={"concept": "nothing"})
    assert missing.status_code == 422
    assert "concept=nothing: there is no such concept. There are: a stripe." in missing.json()["error"]


def test_without_concepts_the_page_offers_none(client):
    assert 'name="concept"' not in page(client.get("/"))
    assert client.get("/api/search", params={"concept": "x"}).status_code == 422


def test_the_confidence_of_a_product_is_calibrated(run_copy, serving):
    client = serving(run_copy)
    product = client.get("/api/product", params={"id": "p20"}).json()
    network = TrainedNetwork(run_copy, flip_average=True)
    calibration = calibrate(read_validation_predictions(run_copy, flip_average=True))
    picture = network.preparation(decode(run_copy.path / "photos" / "20.png"))
    expected = calibration.probabilities(network.outputs(picture[None]).logits).amax().item()
    assert product["confidence"] == pytest.approx(expected, abs=1e-5)
    assert product["confidence"] != pytest.approx(
        network.outputs(picture[None]).logits.softmax(1).amax().item(), abs=1e-4
    )
    assert client.get("/api/status").json()["confidence_calibrated"]
    assert "not calibrated" not in page(client.get("/product", params={"id": "p20"}))


def test_a_catalogue_that_is_not_calibrated_stays_so_and_says_so(run_copy, serving, monkeypatch):
    shutil.rmtree(run_copy.catalogue)
    with monkeypatch.context() as patch:
        patch.setattr("fashion_cnn.retrieval.indexing._fit_temperature", lambda network: None)
        make_catalogue(run_copy, only=20)
    make_catalogue(run_copy, only=30)
    client = serving(run_copy)
    assert not client.get("/api/status").json()["confidence_calibrated"]
    product = client.get("/api/product", params={"id": "p25"}).json()
    network = TrainedNetwork(run_copy, flip_average=True)
    picture = network.preparation(decode(run_copy.path / "photos" / "25.png"))
    expected = network.outputs(picture[None]).logits.softmax(1).amax().item()
    assert product["confidence"] == pytest.approx(expected, abs=1e-5)
    assert ", not calibrated)" in page(client.get("/product", params={"id": "p25"}))


def test_concepts_use_mirror_images_even_if_the_catalogue_does_not(run_copy):
    concepts = teach_concept(run_copy)
    shutil.rmtree(run_copy.catalogue)
    make_catalogue(run_copy, only=20, flip_average=False)
    view = CatalogueState(run_copy, Catalogue(str(run_copy.catalogue)), reject=0.01).require_view()
    network = TrainedNetwork(run_copy, flip_embeddings=True)
    picture = network.preparation(decode(photograph(1)))
    single = TrainedNetwork(run_copy).outputs(picture[None])
    averaged = network.outputs(picture[None])
    assert not torch.allclose(single.embeddings, averaged.embeddings, atol=1e-3)
    result = search_catalogue(view, SearchQuery(), top_k=3, uploads={"picture": [picture]})
    assert result.predictions[0].concepts == tuple(concepts.recognise(averaged.embeddings)[0])
    assert result.hits == view.searcher.search(Query(pictures=(picture,), top_k=3)).hits


def test_a_removed_catalogue_is_reported_and_the_loaded_version_stays(run_copy, serving):
    client = serving(run_copy, "refresh_seconds=0.05")
    shutil.move(run_copy.catalogue, run_copy.path / "elsewhere")
    wait_until(lambda: client.get("/api/status").json()["problem"])
    text = page(client.get("/?like=p20"))
    assert "cannot be loaded" in text
    assert len(grid_ids(text)) == 12
    shutil.move(run_copy.path / "elsewhere", run_copy.catalogue)
    wait_until(lambda: not client.get("/api/status").json()["problem"])


def test_samples_are_products_if_there_is_no_test_set(shop_run, serving, monkeypatch):
    def missing(self, *, train):
        raise UserError("no such files")

    monkeypatch.setattr(TinyDataModule, "load", missing)
    text = page(serving(shop_run).get("/"))
    samples = page_links(text.partition('class="samples"')[2].partition("</ul>")[0])
    assert len(samples) == len(CLASSES)
    assert all(link.startswith("/?like=") for link in samples)


def test_samples_start_no_download(run_copy, torchvision_root, tmp_path, monkeypatch):
    overrides = ["data=kmnist", f"data.root='{torchvision_root}'", "data.val_size=10"]
    config = compose(overrides=overrides)
    config.data.detected = dict(hydra.utils.instantiate(config.data, _convert_="all").detected)
    run_copy.write_config(config)
    assert len(samples_of_test_set(run_copy, None)) == 10
    monkeypatch.setattr("torchvision.datasets.KMNIST.download", lambda self: pytest.fail("a download"))
    assert samples_of_test_set(run_copy, str(tmp_path / "nowhere")) == ()

    def changed_after_the_check(run, root):
        data = instantiate_data(run, root)
        config.data.dataset = "shutil.rmtree"
        run.write_config(config)
        return data

    monkeypatch.setattr("fashion_cnn.inference.network.instantiate_data", changed_after_the_check)
    assert len(samples_of_test_set(run_copy, None)) == 10


def test_the_catalogue_of_a_data_set_is_marked_as_having_invented_prices(run_copy, serving):
    assert "prices are made up" not in serving(run_copy).get("/").text
    data = TinyDataModule(val_size=32, mean=[0.5], std=[0.25])
    network = TrainedNetwork(run_copy, flip_average=True)
    index_products(products_from_data_set(data), Catalogue(str(run_copy.catalogue)), network, rebuild=True)
    text = page(serving(run_copy).get("/"))
    assert "Its prices are made up." in text
    assert "160 products" in text


# Errors


@pytest.mark.parametrize(
    ("method", "link", "status", "message"),
    [
        ("GET", "/nothing", 404, "does not exist"),
        ("GET", "/static/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404, "does not exist"),
        ("GET", "/product?id=none", 404, "has no product"),
        ("GET", "/product", 422, "Invalid value of id"),
        ("GET", "/?like=none", 404, "has no product"),
        ("GET", "/?price_min=cheap", 422, "Invalid value of price_min"),
        ("GET", "/?price_min=nan", 422, "Invalid value of price_min"),
        ("GET", "/?price_min=50&price_max=10", 422, "min=50.0 is above max=10.0"),
        ("GET", "/?page=0", 422, "Invalid value of page"),
        ("GET", "/?page=101", 422, "Invalid value of page"),
        ("GET", "/?where=secret:1", 422, "no column secret"),
        ("GET", "/?where=vector:1", 422, "no column vector"),
        ("GET", "/?where=stock:many", 422, "stock=many is not possible"),
        ("GET", "/?where=colour", 422, "has no value"),
        ("GET", "/?where=stock:4..2", 422, "min=4 is above max=2"),
        ("GET", "/?where=stock:a..b", 422, "stock=a is not possible"),
        ("GET", "/?where=key:1", 422, "no column key"),
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
def test_errors_are_html_on_pages_and_json_in_the_api(client, method, link, status, message):
    response = client.request(method, link)
    text = page(response, status)
    assert message in html.unescape(text)
    assert "<h1>" in text
    assert "/" in page_links(text)
    path, _, query = link.partition("?")
    path = {"/": "/api/search"}.get(path, f"/api{path}")
    response = client.request(method, f"{path}?{query}" if query else path)
    assert response.status_code == status
    assert response.json()["status"] == status
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 415, "is empty"),
        (b"no picture", 415, "holds text"),
        (b"\x00\x01" * 500, 415, "not a picture of a supported format"),
        (encoded(Image.new("RGB", (300, 300), "red"), "JPEG")[:900], 415, "damaged"),
        (png_with_header_size(60_000, 60_000), 413, "too large"),
        (png_with_header_size(6000, 6000), 413, "16 million pixels"),
        (ico_file(png_with_header_size(6000, 6000)), 415, "not a picture of a supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n(run) run", 415, "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not a picture"),
        (b"x" * 10_000_001, 413, "10 MB"),
    ],
)
def test_files_that_are_not_pictures_are_refused_with_a_reason(client, content, status, message):
    assert message in page(upload(client, content), status)
    assert message in upload(client, content, path="/api/search").json()["error"]


def test_the_error_names_which_of_several_files_is_not_a_picture(client):
    assert "Picture 2 of 3 is not a picture: it holds text" in page(
        upload(client, photograph(0), b"no picture", photograph(1)), 415
    )
    response = upload(client, photograph(0), b"no picture", path="/api/search")
    assert response.json()["error"].startswith("Picture 2 of 2 is not a picture: it holds text")


def test_a_picture_is_recognised_by_content_not_by_name(client):
    response = client.post("/api/search", files={"picture": ("../../x.exe", photograph(4), "text/plain")})
    assert response.json()["pictures"][0]["answer"] == CLASSES[0]


def test_the_api_form_refuses_unknown_fields_and_accepts_top_k(client):
    def search(query="", **form):
        return client.post(f"/api/search{query}", **form)

    pictures = {"picture": ("a", photograph(0))}
    assert "Unknown parameter image" in search(files={"image": ("a", photograph(0))}).json()["error"]
    assert "fields of the form" in search("?category=top", files=pictures).json()["error"]
    assert len(search(files=pictures, data={"top_k": "3"}).json()["hits"]) == 3
    assert search(files=pictures, data={"top_k": "0"}).status_code == 422
    link = parse_qs(urlsplit(search(files=pictures).json()["link"]).query)["picture"]
    response = search(files=[("picture", ("a", photograph(0)))] * 4, data={"picture": link})
    assert (response.status_code, "Too many pictures" in response.text) == (422, True)
    odd = b'--b\r\nContent-Disposition: form-data; name="+2AA-"\r\n\r\nx\r\n--b--\r\n'
    response = search(content=odd, headers={"content-type": "multipart/form-data; boundary=b; charset=utf-7"})
    assert response.status_code == 415


@pytest.mark.parametrize(
    ("charset", "text", "status"),
    [
        *(("utf-8", "ré", 200), ('"UTF-8"', "ré", 200), ("us-ascii", "red", 200)),
        *(("punycode", "red", 415), ("utf-16", "red", 415), ("unknown", "red", 415)),
    ],
)
def test_forms_are_text_in_utf_8(client, charset, text, status):
    """Some of Python's character sets take time that grows with the square of the length."""
    form = f'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\n{text}\r\n--b--\r\n'.encode()
    headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = client.post("/api/search", content=form, headers=headers)
    assert response.status_code == status
    if status == 200:
        assert parse_qs(urlsplit(response.json()["link"]).query) == {"text": [text]}
    else:
        assert "UTF-8" in response.json()["error"]


def test_a_colour_picture_of_64_pixels_fits_into_a_link():
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    picture = torch.from_numpy(np.asarray(Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)).copy())
    picture = picture.permute(2, 0, 1)
    text = encode_picture(picture)
    assert len(text) <= 12_000
    assert np.abs(decode_picture(text, (3, 64, 64)).astype(float) - picture.numpy()).mean() < 6


def test_an_address_of_64_kb_is_accepted(client):
    pictures = {"picture": ["A" * 12_000] * 4, "unlike_picture": ["A" * 12_000]}
    response = client.get(f"/?{urlencode(pictures, doseq=True)}", headers={"cookie": "x" * 4000})
    assert "The picture in this link is damaged" in page(response, 422)


def test_the_api_returns_no_link_if_the_pictures_are_too_long_for_one(client, monkeypatch):
    monkeypatch.setattr("fashion_cnn.retrieval.web.api.encode_picture", lambda picture: "A" * 12_000)
    for count, has_link in ((2, True), (4, False)):
        files = [(name, ("a.png", photograph(5))) for name in ("picture", "unlike_picture")] * count
        response = client.post("/api/search", files=files)
        assert (response.status_code, response.json()["link"] is not None) == (200, has_link)


def test_too_many_pictures_or_fields_are_refused(client):
    assert upload(client, *[photograph(0)] * 5).status_code == 422
    assert upload(client, *[photograph(0)] * 5, path="/api/search").status_code == 422
    assert upload(client, *[photograph(0)] * 9).status_code == 400
    assert client.post("/", files=[("like", (None, "p20"))] * 500).status_code == 400
    assert upload(client, photograph(0), text="x" * 20_000).status_code == 400


def test_an_upload_without_content_length_ends_at_the_limit(shop_run):
    sent, messages = 0, []

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
        messages.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/api/search", "query_string": b"", "headers": headers}
    anyio.run(build_app(compose("serve", [f"run='{shop_run.path}'"]), "127.0.0.1"), scope, receive, send)
    assert messages[0]["status"] == 413
    assert sent < 12_000_000


# Security

SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.mark.parametrize(
    "link", ["/", "/developer", "/api", "/api/status", "/static/style.css", "/nothing", "/?page=x"]
)
def test_every_response_has_security_headers_and_head_equals_get_without_body(client, link):
    response = client.get(link)
    assert response.headers.items() >= SAFE.items()
    policy = response.headers["content-security-policy"]
    for rule in ("default-src 'self'", "img-src 'self' data:", "frame-ancestors 'none'", "form-action 'self'"):
        assert rule in policy
    assert "unsafe" not in policy
    head = client.head(link)
    assert (head.status_code, head.content) == (response.status_code, b"")
    assert head.headers["content-type"] == response.headers["content-type"]


def test_static_files_are_cached_and_revalidated_and_pages_are_not_cached(client):
    response = client.get("/static/style.css")
    assert response.headers["cache-control"] == "max-age=300"
    unchanged = client.get("/static/style.css", headers={"if-none-match": response.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["cache-control"] == "max-age=300"
    assert client.head("/static/style.css").headers["content-length"] == str(len(response.content))
    assert client.get("/static/search.js").headers["content-type"].split(";")[0].endswith("/javascript")
    assert client.get("/static/icon.svg").headers["content-type"] == "image/svg+xml"
    for link in ("/", "/api/status", "/static/none.css"):
        assert client.get(link).headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path", ["", "none.css", "%2e%2e%2fpages.py", "%2e%2e%2ftemplates%2fbase.html", "%2fetc%2fpasswd", "%00", "a" * 300]
)
def test_nothing_outside_the_static_folder_is_served(client, path):
    assert "does not exist" in page(client.get(f"/static/{path}"), 404)
    assert client.post(f"/static/{path}").status_code == 405


@pytest.mark.parametrize("thumbnail", [b"", b"<html>", png_with_header_size(60_000, 60_000), ico_file(b"")])
def test_a_thumbnail_that_cannot_be_read_is_a_grey_square_on_pages(thumbnail):
    source = inline_image(thumbnail).source
    picture = decode(base64.b64decode(source.removeprefix("data:image/png;base64,")))
    assert (picture.size, picture.getpixel((0, 0))) == ((1, 1), 128)


def test_an_internal_error_reveals_no_details(client, monkeypatch):
    def broken(query, result):
        raise RuntimeError("a secret")

    monkeypatch.setattr(web_pages, "query_pictures", broken)
    # The server gives up a connection after a failure: the next test is to have another.
    response = client.get("/", headers={"connection": "close"})
    assert "a secret" not in page(response, 500)
    assert "Traceback" not in response.text
    assert response.headers.items() >= SAFE.items()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost@evil", "[::1"]
)
def test_a_local_server_refuses_other_host_names(client, host):
    response = client.get("/", headers={"host": host})
    assert response.status_code == 400
    assert CLASSES[0] not in response.text
    for name in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000"):
        assert client.get("/api/status", headers={"host": name}).status_code == 200


ORIGIN_HOST = {"host": "localhost:8000"}


@pytest.mark.parametrize(
    ("headers", "is_cross_site"),
    [
        ({}, False),  # curl and scripts
        ({"sec-fetch-site": "same-origin", "origin": "http://localhost:8000"}, False),
        ({"sec-fetch-site": "none"}, False),
        # Behind a proxy with TLS, which changes the Host header.
        ({"sec-fetch-site": "same-origin", "origin": "https://shop.example"}, False),
        ({"origin": "https://shop.example", "x-forwarded-host": "shop.example"}, False),
        # Browsers do not send Sec-Fetch-Site over HTTP to other machines.
        ({"origin": "http://localhost:8000"}, False),
        ({"origin": "http://LOCALHOST:8000"}, False),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:8000"}, False),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost:8000"}, True),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:3000"}, True),
        ({"origin": "https://evil.example"}, True),
        ({"origin": "http://localhost"}, True),
        ({"origin": "http://localhost:8000.evil.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": ""}, True),
    ],
)
def test_forms_of_other_websites_are_refused(client, headers, is_cross_site):
    for path, status in (("/", 303), ("/api/search", 200)):
        files = {"picture": ("a.png", photograph(0))}
        response = client.post(path, files=files, headers=ORIGIN_HOST | headers)
        assert response.status_code == (403 if is_cross_site else status)
        if is_cross_site:
            message = response.json()["error"] if path.startswith("/api/") else response.text
            assert message.strip().startswith("This form was sent by another website")
        link = client.get("/api/search?text=red", headers=ORIGIN_HOST | headers)
        assert link.status_code == 200, "links from other websites work"


def test_a_public_server_accepts_any_host_name(serving, shop_run):
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


def test_hundreds_of_hostile_queries_cause_no_server_error(client, empty_temporary_folder):
    chance = random.Random(0)
    statuses = set()
    for number, query in enumerate(hostile_queries(chance, 220)):
        path = ("/", "/api/search", "/product", "/api/product", "/api/thumbnail", "/developer")[number % 6]
        response = client.request(
            chance.choice(["GET", "GET", "GET", "HEAD", "POST", "PATCH", "OPTIONS"]), f"{path}?{query}"
        )
        assert response.status_code < 500, query
        assert "Traceback" not in response.text
        assert "set-cookie" not in response.headers
        statuses.add(response.status_code)
    assert statuses >= {200, 404, 405, 422}


def hostile_pictures(chance, count):
    kinds = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
    pictures = [encoded(Image.new("RGB", (40, 30), "red"), kind) for kind in kinds]
    for _ in range(count):
        content = bytearray(chance.choice(pictures))
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
    yield ico_file(png_with_header_size(6000, 6000))
    yield ico_file(encoded(Image.new("L", (3900, 3901))))
    yield encoded(Image.new("I;16", (30, 30)))
    yield encoded(Image.new("F", (30, 30), float("nan")), "TIFF")


def test_hundreds_of_hostile_uploads_cause_no_server_error(client, empty_temporary_folder):
    chance = random.Random(1)
    statuses = set()
    names = ["../../x.png", "x\x00.png", "con", "a" * 300, "é.png", "'; drop"]
    for content in hostile_pictures(chance, 70):
        files = {"picture": (chance.choice(names), content, chance.choice(["image/png", "text/html", "x" * 99]))}
        response = client.post(chance.choice(["/", "/api/search"]), files=files)
        assert response.status_code in (200, 303, 413, 415), response.text[:300]
        statuses.add(response.status_code)
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


def test_malformed_forms_cause_no_server_error(client, empty_temporary_folder):
    statuses = set()
    for kind, body in hostile_forms(random.Random(2)):
        for path in ("/", "/api/search"):
            response = client.post(path, content=body, headers={"content-type": kind.encode("latin-1")})
            assert response.status_code < 500, (kind, body[:80], response.text)
            statuses.add(response.status_code)
    assert statuses >= {200, 303, 400, 415, 422}


def incomplete_forms():
    part = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nred\r\n'
    picture = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\n' + photograph(0) + b"\r\n"
    bodies = [b"", b"--b--\r\n", b"--b", part[:-5], part, part + b"--b", part + b"--b\r\n"]
    return [*bodies, part + picture[:-40], part + picture]


def test_a_damaged_form_writes_nothing_to_the_log(client, caplog):
    # The client logs its requests if another test has let it.
    caplog.set_level("WARNING", logger="httpx")
    headers = {"content-type": "multipart/form-data; boundary=B"}
    assert client.post("/api/search", content=b"no boundary", headers=headers).status_code == 400
    assert not caplog.records


@pytest.mark.parametrize("body", incomplete_forms())
def test_empty_and_truncated_forms_are_refused(client, body):
    for path in ("/", "/api/search"):
        response = client.post(path, content=body, headers={"content-type": "multipart/form-data; boundary=b"})
        assert response.status_code == 400
        assert "it is empty or ended early." in response.text
    whole = client.post(
        "/api/search",
        content=incomplete_forms()[-1] + b"--b--\r\n",
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert whole.status_code == 200


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/", "GET, HEAD, OPTIONS, POST"),
        ("/api/search", "GET, HEAD, OPTIONS, POST"),
        ("/product", "GET, HEAD, OPTIONS"),
        ("/api/status", "GET, HEAD, OPTIONS"),
        ("/static/style.css", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_names_all_methods(client, path, methods):
    response = client.options(path)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["allow"] == methods
    assert "access-control-allow-origin" not in response.headers
    refused = client.put(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, methods)


def test_words_do_not_wait_for_pictures(serving, shop_run, monkeypatch):
    is_decoding, may_end = threading.Event(), threading.Event()

    def wait(self, contents, preparation, boxes):
        is_decoding.set()
        may_end.wait(PATIENCE)
        return [np.zeros(preparation.image_shape, np.uint8) for _ in contents]

    monkeypatch.setattr(PictureProcess, "prepare", wait)
    client = serving(shop_run, "limits.threads=1")
    with ThreadPoolExecutor(3) as threads:
        uploads = [threads.submit(upload, client, photograph(0), path="/api/search") for _ in range(3)]
        try:
            assert is_decoding.wait(PATIENCE)
            assert client.get("/api/search?text=red").status_code == 200
            assert client.get("/?like=p20").status_code == 200
            assert not any(each.done() for each in uploads)
        finally:
            may_end.set()
        assert {each.result().status_code for each in uploads} == {200}


def connect(client):
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=PATIENCE)


def is_closed(connection):
    """Return whether the server closes the connection before it sends anything."""
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def raises_when_closed(send):
    try:
        send()
    except TimeoutError:
        return False
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n",
        # The response does not wait for the body.
        b"GET /none HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nx",
        b"GET /none HTTP/1.1\r\nhost: localhost\r\n\r\nGET /",
    ],
)
@pytest.mark.slow
def test_a_connection_without_a_whole_request_is_closed(serving, shop_run, sent):
    client = serving(shop_run, "limits.idle_seconds=0.3")
    with connect(client) as connection:
        connection.sendall(sent)
        responses = b""
        with suppress(ConnectionResetError):
            while received := connection.recv(65536):
                responses += received
        assert responses.count(b"HTTP/1.1 404 ") == ("none" in sent.decode())


@pytest.mark.slow
def test_header_bytes_do_not_keep_a_connection_open(serving, shop_run):
    client = serving(shop_run, "limits.idle_seconds=0.3")
    with connect(client) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")

        def one_more():
            connection.sendall(b"x: y\r\n")

        wait_until(lambda: raises_when_closed(one_more))


@pytest.mark.slow
def test_a_client_that_does_not_read_its_responses_is_disconnected(serving, shop_run):
    client = serving(shop_run, "limits.idle_seconds=0.3")
    with connect(client) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.1)
        requests = 1000 * b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
        wait_until(lambda: raises_when_closed(lambda: connection.sendall(requests)))


def test_an_upload_in_a_great_many_tiny_chunks_is_closed(client):
    head = b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=B\r\n"
    with connect(client) as connection:
        connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n" + 400 * b"1\r\nx\r\n")
        wait_until(lambda: raises_when_closed(lambda: connection.sendall(200 * b"1\r\nx\r\n")))
    assert client.get("/api/status").status_code == 200


def test_an_upload_in_ordinary_chunks_is_accepted(client):
    part = b'--B\r\ncontent-disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    form = part + photograph(0) + b"\r\n--B--\r\n"
    pieces = [form[start : start + 2000] for start in range(0, len(form), 2000)]
    response = client.post(
        "/api/search", content=iter(pieces), headers={"content-type": "multipart/form-data; boundary=B"}
    )
    assert response.status_code == 200
    assert response.request.headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("limit", ["connections=6", "connections_per_address=6"])
def test_idle_connections_make_room_for_new_ones(serving, shop_run, limit):
    client = serving(shop_run, f"limits.{limit}")
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(client)) for _ in range(30)]
        for _ in range(3):
            assert client.get("/api/status", headers={"connection": "close"}).status_code == 200
        assert all(map(is_closed, idle[:24])), "the oldest are closed first"


def test_requests_beyond_the_connections_of_an_address_get_503(serving, shop_run, monkeypatch):
    may_end, prepare, arrived = threading.Event(), SearchService.prepare, []

    async def recorded(self, view, files, boxes):
        arrived.append(files)
        return await prepare(self, view, files, boxes)

    def wait(self, contents, preparation, boxes):
        may_end.wait(PATIENCE)
        return [np.zeros(preparation.image_shape, np.uint8) for _ in contents]

    monkeypatch.setattr(SearchService, "prepare", recorded)
    monkeypatch.setattr(PictureProcess, "prepare", wait)
    address = serving(shop_run, "limits.connections_per_address=3").base_url
    with ThreadPoolExecutor(3) as threads, ExitStack() as stack:
        stack.callback(may_end.set)
        form = {"files": {"picture": photograph(0)}, "timeout": PATIENCE}
        responses = []
        for number in range(3):
            responses.append(threads.submit(httpx.post, f"{address}/api/search", **form))
            wait_until(lambda expected=number + 1: len(arrived) == expected)
        assert httpx.get(f"{address}/api/status").status_code == 503
        may_end.set()
        assert {each.result().status_code for each in responses} == {200}
    wait_until(lambda: httpx.get(f"{address}/api/status").status_code == 200)


def test_requests_beyond_the_queue_get_503_with_retry_after(shop_run, monkeypatch):
    others_refused = threading.Event()

    def wait_then_search(*arguments, **options):
        others_refused.wait(PATIENCE)
        return search_catalogue(*arguments, **options)

    monkeypatch.setattr(web_service, "search_catalogue", wait_then_search)

    def crowd(clients, *overrides, accepted):
        """The responses; searches end once all requests above `accepted` have been refused."""
        others_refused.clear()

        async def run_clients():
            transport = httpx.ASGITransport(
                build_app(compose("serve", [f"run='{shop_run.path}'", *overrides]), "127.0.0.1")
            )
            responses = []
            async with (
                httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
                anyio.create_task_group() as tasks,
            ):

                async def search(number):
                    responses.append(await client.get("/api/search", params={"like": f"p{10 + number % 40}"}))
                    if len(responses) >= clients - accepted:
                        others_refused.set()

                if clients <= accepted:
                    others_refused.set()
                for number in range(clients):
                    tasks.start_soon(search, number)
            return responses

        return anyio.run(run_clients)

    assert {each.status_code for each in crowd(64, accepted=66)} == {200}
    responses = crowd(40, "limits.threads=1", "limits.waiting=3", accepted=4)
    assert [each.status_code for each in responses] == [503] * 36 + [200] * 4
    assert all(each.headers["retry-after"] == "1" for each in responses[:36])


@pytest.mark.parametrize("link", ["/", "/?like=p10&unlike=p11", "/product?id=p10", "POST /api/search", "POST /"])
def test_a_request_whose_first_job_was_accepted_is_answered_although_the_queue_is_full(
    serving, shop_run, monkeypatch, link
):
    run = web_service.Workers.run

    async def fill_queue_afterwards(self, job, **options):
        result = await run(self, job, **options)
        self._jobs = self._max_jobs
        return result

    monkeypatch.setattr(web_service.Workers, "run", fill_queue_afterwards)
    client = serving(shop_run, "samples=catalogue")
    method, _, path = link.rpartition(" ")
    if method:
        assert upload(client, photograph(0), path=path).status_code in (200, 303)
    else:
        assert client.get(path).status_code == 200
    assert client.get("/").status_code == 503


def test_uploads_share_a_memory_limit(serving, shop_run):
    client = serving(shop_run, "limits.memory_mb=0.02")
    noise = encoded(Image.frombytes("L", (200, 200), random.Random(0).randbytes(40_000)))
    for _ in range(3):
        assert upload(client, noise).status_code == 503
        assert upload(client, photograph(0)).status_code == 303, "what was taken is given back"


def test_files_of_a_form_are_not_kept_twice(client, monkeypatch):
    read, opened = UploadFile.read, []

    async def recorded(self, *arguments):
        opened.append(self.file)
        assert all(file.closed for file in opened[:-1])
        return await read(self, *arguments)

    monkeypatch.setattr(UploadFile, "read", recorded)
    assert upload(client, *map(photograph, range(4)), path="/api/search").status_code == 200
    assert len(opened) == 4


# Command


def test_a_catalogue_of_another_network_is_refused_with_one_message(command, run_copy, shop_run):
    import torch

    from fashion_cnn.inference.network import weights_sha256

    checkpoint = torch.load(run_copy.best_checkpoint, weights_only=False)
    for value in checkpoint["state_dict"].values():
        value += 1
    torch.save(checkpoint, run_copy.best_checkpoint)
    run_copy.write_results(run_copy.results() | {"weights_sha256": weights_sha256(checkpoint["state_dict"])})
    status, out, err = command(main, f"run={run_copy.path}", "port=0")
    assert (status, out) == (1, "")
    assert "another network" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        # An interface that does not exist: known without asking a name server.
        (["host='fe80::1%nosuch'"], 1, "is not an address"),
        (["host=192.0.2.1"], 1, "Cannot listen"),
        (["host="], 2, "host= is empty"),
        (["port=70000"], 2, "port=70000 is invalid"),
        (["port=many"], 2, "port=many"),
        (["top_k=0"], 2, "top_k=0"),
        (["reject=1"], 2, "reject=1 is not possible"),
        (["limits.threads=0"], 2, "limits.threads=0"),
        (["refresh_seconds=0"], 2, "refresh_seconds=0"),
        (["prot=1"], 2, "port"),
        (["allow_origins=[https://shop.example/]"], 2, "allow_origins=https://shop.example/ is no website"),
        (["allow_origins=['*']"], 2, "allow_origins=* is no website"),
        (["allow_hosts=['shop.example:443']"], 2, "allow_hosts=shop.example:443 is no host name"),
        (["allow_hosts=['https://shop.example']"], 2, "allow_hosts=https://shop.example is no host name"),
        (["writable=true"], 2, "writable=true needs an API key"),
        (["writable=true", "api_keys=none.txt"], 1, "api_keys=none.txt does not exist"),
        (["api_keys=none.txt"], 1, "api_keys=none.txt does not exist"),
        (["hidden_columns=[stok]"], 1, "hidden_columns=stok: the catalogue has no such column"),
        (["hidden_columns=[price]"], 1, "hidden_columns=price: the catalogue has no such column"),
        (["samples=some"], 2, "samples=some"),
        (["limits.requests_per_minute=0"], 2, "limits.requests_per_minute=0"),
        (["limits.requests_per_minute=many"], 2, "limits.requests_per_minute=many is invalid"),
    ],
)
def test_invalid_options_are_refused_with_one_message(command, shop_run, overrides, status, message):
    ended, out, err = command(main, f"run={shop_run.path}", *overrides)
    assert (ended, out) == (status, "")
    assert message in err
    assert "Traceback" not in err


def test_a_port_in_use_is_refused_with_one_message(command, shop_run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, err = command(main, f"run={shop_run.path}", f"port={taken.getsockname()[1]}")
    assert status == 1
    assert "in use" in err
    assert "choose another port" in err


@pytest.mark.processes
def test_sigterm_during_uploads_answers_them_and_logs_no_traceback(shop_run, tmp_path):
    command = [sys.executable, "-m", "fashion_cnn.serve", f"run={shop_run.path}", "port=0"]
    with (
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server,
        ExitStack() as cleanup,
    ):
        cleanup.callback(server.kill)
        port = int(re.search(r":(\d+) ", server.stdout.readline())[1])
        connections = []
        for sent in (20, 50_000):
            connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            connections.append(cleanup.enter_context(connection))
            head = b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n"
            connection.sendall(head + b"content-type: multipart/form-data; boundary=b\r\n\r\n")
            body = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\n' + bytes(sent)
            connection.sendall(body[:sent])
            # The server has taken the request once it answers the next one.
            assert httpx.get(f"http://127.0.0.1:{port}/api/status", timeout=PATIENCE).status_code == 200
        server.send_signal(signal.SIGTERM)
        for connection in connections:
            response = b"".join(iter(functools.partial(connection.recv, 65536), b""))
            assert response.startswith(b"HTTP/1.1 503 ")
            assert b"The server is stopping." in response
        _, err = server.communicate(timeout=PATIENCE)
        assert server.returncode == -signal.SIGTERM
        assert "Traceback" not in err
        assert "Exception" not in err


@pytest.mark.processes
def test_the_server_prints_its_address_serves_and_stops_on_ctrl_c(shop_run, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "fashion_cnn.serve", f"run={shop_run.path}", "port=0"]
    with (
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as server,
        ExitStack() as cleanup,
    ):
        cleanup.callback(server.kill)
        line = server.stdout.readline()
        opened = re.match(r"Open (http://127\.0\.0\.1:\d+) ", line)
        assert opened, line or server.stderr.read()
        address = opened[1]
        with httpx.Client(base_url=address, timeout=PATIENCE) as client:
            assert client.get("/api/status").json()["products"] == 60
            assert client.post("/", files={"picture": ("a.png", photograph(0))}).status_code == 303
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            # The response to HEAD has no body: the next response follows at once.
            next_request = b"GET /none HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            connection.sendall(b"HEAD / HTTP/1.1\r\nhost: localhost\r\n\r\n" + next_request)
            responses = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, rest = responses.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert rest.startswith(b"HTTP/1.1 404 ")
        for raw in (
            # Without an end: a header that arrives whole in one read has no limit.
            b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 200_000,
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
    assert not [file for file in Path(tmp_path).iterdir() if file.is_file()]
