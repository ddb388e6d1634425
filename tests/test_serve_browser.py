"""The search pages in a real browser: JavaScript on and off, keyboard, phone, dark colours, accessibility."""

import pytest
from conftest import PATIENCE
from tiny_shop import CLASSES, photograph, served

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(shop_run):
    with served(shop_run) as address:
        yield address


@pytest.fixture
def visit(browser, address):
    """Open a page in a new browser context; fails at the end on errors and on requests to other hosts."""
    contexts, problems = [], []

    def open_page(link="/", **options):
        context = browser.new_context(base_url=address, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda request: request.url.startswith((address, "data:")) or problems.append(request.url))
        page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(link)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


def titles(page):
    return page.locator(".grid .title").all_inner_texts()


def follow(page, target):
    """Click a link or button and wait for the next page."""
    with page.expect_navigation():
        target.click()


def choose_pictures(page, *numbers):
    files = [{"name": f"{number}.png", "mimeType": "image/png", "buffer": photograph(number)} for number in numbers]
    page.get_by_label("Pictures", exact=True).set_input_files(files)


@pytest.mark.parametrize("javascript", [True, False], ids=["with JavaScript", "without JavaScript"])
def test_picture_search_filters_marks_and_shared_links(visit, javascript):
    page = visit(java_script_enabled=javascript)
    choose_pictures(page, 6)
    if not javascript:
        follow(page, page.get_by_role("button", name="Search"))
    page.wait_for_url("**/?picture=*")
    assert page.get_by_role("heading", name=CLASSES[6 % 4], exact=True).is_visible()
    similar = titles(page)
    assert len(similar) == 12

    page.locator("summary", has_text="Colour").click()
    page.get_by_label("red").check()
    follow(page, page.get_by_role("button", name="Apply").locator("visible=true"))
    red = titles(page)
    assert red
    assert all(title.startswith("red") for title in red)
    follow(page, page.get_by_role("link", name="colour: red"))
    assert titles(page) == similar

    follow(page, page.get_by_role("link", name="More like").nth(2))
    follow(page, page.get_by_role("link", name="Less like").nth(4))
    refined = titles(page)
    assert refined != similar
    assert page.locator(".marked.like img").count() == page.locator(".marked.unlike img").count() == 1

    shared = visit(page.url, java_script_enabled=javascript)
    assert titles(shared) == refined
    assert shared.get_by_role("heading", name=CLASSES[6 % 4], exact=True).is_visible()

    title = refined[3]
    follow(page, page.locator(".grid .product").nth(3))
    assert page.get_by_role("heading", level=1).inner_text() == title
    assert len(titles(page)) == 12
    follow(page, page.get_by_role("link", name="Back to the results"))
    assert titles(page) == refined


def test_words_filters_and_pages_work_by_keyboard(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "picture"
    page.keyboard.press("Tab")
    page.keyboard.type("green")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?text=green")
    first = titles(page)
    assert all("green" in title for title in first)
    page.get_by_role("link", name="Next page").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**page=2")
    second = titles(page)
    assert second
    assert not set(first) & set(second)
    page.locator("summary", has_text="Price").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("50")
    page.keyboard.press("Enter")
    page.wait_for_url("**price_min=50")
    assert titles(page)


def test_a_dropped_picture_is_searched(visit):
    page = visit()
    dropped = page.evaluate_handle(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
            return data;
        }""",
        list(photograph(5)),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    page.wait_for_url("**/?picture=*")
    assert page.get_by_role("heading", name=CLASSES[5 % 4], exact=True).is_visible()


def test_a_part_of_the_picture_is_dragged_and_searched(visit):
    page = visit()
    assert page.locator("#choose-part").count() == 0
    choose_pictures(page, 6)
    page.wait_for_url("**/?picture=*")
    of_whole = page.url
    page.get_by_role("button", name="Choose a part").click()
    picture = page.get_by_role("img", name="Your picture", exact=True)
    frame = picture.bounding_box()
    page.mouse.move(frame["x"] + 0.1 * frame["width"], frame["y"] + 0.2 * frame["height"])
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.5 * frame["width"], frame["y"] + 0.6 * frame["height"], steps=3)
    page.mouse.up()
    assert "10 to 50% of the width, 20 to 60% of the height" in page.get_by_role("status").last.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    assert "12 to 52% of the width, 20 to 62% of the height" in page.get_by_role("status").last.inner_text()
    violations = axe.Axe().run(page).response["violations"]
    assert [each["id"] for each in violations if each["impact"] in ("serious", "critical")] == []
    page.evaluate(
        "document.querySelector('form.search')"
        ".addEventListener('formdata', (event) => (window.name = event.formData.get('box')))"
    )
    follow(page, page.get_by_role("button", name="Search this part"))
    assert page.evaluate("window.name") == "0.1200,0.2000,0.5200,0.6200"
    of_part = page.url
    assert of_part != of_whole
    # The part is still there, and the whole picture is one click away.
    page.get_by_role("button", name="Choose a part").click()
    assert "12 to 52% of the width" in page.get_by_role("status").last.inner_text()
    follow(page, page.get_by_role("button", name="Whole picture"))
    assert page.url != of_part
    # A link of another picture offers no part of this one.
    page.goto(of_part)
    assert page.get_by_role("button", name="Choose a part").count() == 0


def test_a_part_is_dragged_on_a_phone(visit):
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    choose_pictures(page, 6)
    page.wait_for_url("**/?picture=*")
    page.get_by_role("button", name="Choose a part").tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.querySelector('.whole')).touchAction") == "none"
    picture = page.get_by_role("img", name="Your picture", exact=True)
    picture.scroll_into_view_if_needed()
    frame = picture.bounding_box()
    touch = page.context.new_cdp_session(page)
    points = [(0.1, 0.1), (0.3, 0.4), (0.6, 0.7)]
    for kind, place in zip(("touchStart", "touchMove", "touchMove"), points, strict=True):
        point = {"x": frame["x"] + place[0] * frame["width"], "y": frame["y"] + place[1] * frame["height"]}
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert "10 to 60% of the width, 10 to 70% of the height" in page.get_by_role("status").last.inner_text()


def test_dropped_and_pasted_text_goes_to_the_field_and_other_files_show_an_alert(visit):
    page = visit()
    events = page.evaluate(
        """() => {
            const data = (file, type, text) => {
                const transfer = new DataTransfer();
                if (file) transfer.items.add(new File(["x"], file, {type}));
                if (text) transfer.items.add(text, "text/plain");
                return transfer;
            };
            const field = document.querySelector("#text");
            let sent = 0;
            document.querySelector("form.search").addEventListener("submit", () => sent++);
            const drop = (data) => new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
            const paste = (data) => new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
            const alerted = () => !document.querySelector("#no-picture").hidden;
            const words = drop(data(null, null, "red shirt"));
            field.dispatchEvent(words);
            field.dispatchEvent(paste(data("cells.png", "image/png", "red shirt")));
            const before = alerted();
            document.body.dispatchEvent(drop(data("list.pdf", "application/pdf")));
            return {inField: !words.defaultPrevented, before, after: alerted(), sent};
        }"""
    )
    assert events == {"inField": True, "before": False, "after": True, "sent": 0}
    assert page.get_by_role("alert").inner_text() == "This file is not a picture: choose a JPEG, PNG or WebP file."


def test_a_picture_that_is_too_large_leads_to_an_error_page(browser, address):
    page = browser.new_page(base_url=address, java_script_enabled=False)
    page.goto("/")
    page.get_by_label("Pictures", exact=True).set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": b"x" * 11_000_000}
    )
    follow(page, page.get_by_role("button", name="Search"))
    assert "maximum is 10 MB" in page.locator("main").inner_text()
    page.close()


PAGES = {
    "start": "/",
    "results": "/?like=p20&unlike=p30&text=red&category=top&category=low&price_max=60&where=colour:red",
    "product": "/product?id=p20&like=p30",
    "no results": "/?text=zzz",
    "developer": "/developer",
    "API": "/api",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_pages_have_no_serious_accessibility_violations(visit, name, scheme):
    page = visit(PAGES[name], color_scheme=scheme)
    if name == "results":
        page.locator("summary").first.click()
    violations = axe.Axe().run(page).response["violations"]
    serious = [each for each in violations if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []


@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_the_width_of_a_phone(visit, name):
    page = visit(PAGES[name], viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
