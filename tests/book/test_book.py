"""The built book, opened as a reader opens it, with the network cut off."""

import functools
import http.server
import posixpath
import threading
import urllib.parse
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest
from playwright.sync_api import sync_playwright

from tools import chromium
from tools.contents import toc_parts
from tools.pages import ROOT

pytestmark = pytest.mark.browser

BOOK = ROOT / "_build" / "html"
PAGES = ["intro", *(file for _, files in toc_parts() for file in files)]
AXE = ROOT / "tests" / "book" / "vendor" / "axe" / "axe.min.js"

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

# sphinx-thebe is set up twice by Jupyter Book, also when it is switched off. Harmless.
KNOWN_ERRORS = ("Identifier 'THEBE_JS_URL' has already been declared",)

# What axe finds in the theme itself. Anything else is ours.
THEME_VIOLATIONS = {
    "label-content-name-mismatch",  # search and color mode buttons, "Show the code"
    "region",  # the sidebar's logo
    "aria-allowed-role",  # docutils gives the entries of a bibliography roles
    "aria-deprecated-role",
    "empty-table-header",  # the corner of a table that pandas writes
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    """Serve the built book on the loopback interface."""
    if not (BOOK / "index.html").exists():
        pytest.fail("The book is not built. Run `make book` first.")
    handler = functools.partial(Quiet, directory=str(BOOK))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    path = chromium.find()
    if path is None:
        pytest.fail(chromium.WAY_OUT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """One page, open, and what went wrong while it opened."""

    page: object
    errors: list = field(default_factory=list)
    outside: list = field(default_factory=list)
    failed: list = field(default_factory=list)


def visit(browser, address, path, viewport=DESKTOP, theme="light"):
    """Open a page and wait until it is drawn. Requests to other hosts are refused and noted."""
    context = browser.new_context(viewport=viewport, color_scheme=theme, reduced_motion="reduce")
    result = Visit(context.new_page())

    def route(route, request):
        if request.url.startswith((address, "data:")):
            route.continue_()
        else:
            result.outside.append(request.url)
            route.abort()

    def note(text):
        if not any(known in text for known in KNOWN_ERRORS):
            result.errors.append(text)

    context.route("**/*", route)
    result.page.on("console", lambda line: line.type == "error" and note(line.text))
    result.page.on("pageerror", lambda error: note(str(error)))
    result.page.on("requestfailed", lambda request: result.failed.append(request.url))
    result.page.on(
        "response",
        lambda answer: (
            answer.status >= 400 and result.failed.append(f"{answer.status} {answer.url}")
        ),
    )
    result.page.goto(f"{address}/{path}", wait_until="load")
    result.page.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise")
    result.page.evaluate("window.MathJax && MathJax.startup && MathJax.startup.promise")
    return result


@pytest.fixture(scope="module", params=PAGES)
def desktop(browser, address, request):
    result = visit(browser, address, f"{request.param}.html")
    yield result
    result.page.context.close()


@pytest.fixture(scope="module", params=PAGES)
def phone(browser, address, request):
    result = visit(browser, address, f"{request.param}.html", PHONE, "dark")
    yield result
    result.page.context.close()


def axe(page):
    """Return what axe-core finds, without the theme's own, as one line each."""
    page.add_script_tag(path=str(AXE))
    violations = page.evaluate("axe.run({resultTypes: ['violations']}).then(r => r.violations)")
    return [
        f"{found['id']}: {node['target']} {node['failureSummary']}"
        for found in violations
        if found["id"] not in THEME_VIOLATIONS
        for node in found["nodes"]
        # docutils puts a bibliography's links back to the pages among its entries
        if (found["id"], node["target"]) != ("aria-required-children", [".citation-list"])
    ]


def test_opens_without_errors(desktop):
    assert desktop.errors == []
    assert desktop.failed == []
    assert desktop.outside == [], "the page asks another host"


def test_formulas_are_drawn(desktop):
    written = desktop.page.locator("span.math, div.math").count()
    drawn = desktop.page.locator("span.math mjx-container, div.math mjx-container").count()
    assert drawn >= written, "a formula is shown as raw TeX"
    assert desktop.page.locator("mjx-merror, [data-mjx-error]").count() == 0, "a formula is wrong"


def test_pictures_are_there_and_described(desktop):
    pictures = desktop.page.evaluate(
        "[...document.images].map(i => [i.getAttribute('src'), i.naturalWidth, i.getAttribute('alt')])"
    )
    assert pictures, "not even the logo is there"
    lazy = [src for src, width, _ in pictures if not width]
    assert lazy == [], "pictures that do not load"
    figures = desktop.page.locator("main figure img, main .cell_output img")
    for alt in figures.evaluate_all("all => all.map(i => i.alt)"):
        assert len(alt.split()) >= 4, f"a figure needs an alt text, not {alt!r}"
    assert all(alt is not None for _, _, alt in pictures)


def test_desktop_is_accessible(desktop):
    assert axe(desktop.page) == []


def test_phone_is_accessible_and_dark(phone):
    assert phone.page.evaluate("document.documentElement.dataset.theme") == "dark"
    background = phone.page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(c) for c in background.strip("rgba()").split(",")[:3]]
    assert max(channels) < 64, f"the dark theme's background is {background}"
    assert axe(phone.page) == []


def test_phone_does_not_scroll_sideways(phone):
    wide = phone.page.evaluate(
        """[...document.querySelectorAll('main *')].filter(e =>
             e.getBoundingClientRect().right > innerWidth + 1 &&
             !e.closest('pre, .math, .output, table, mjx-container, .cell_output, details, .sidebar'))
           .map(e => e.outerHTML.slice(0, 120))"""
    )
    scroll, width = phone.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scroll <= width, f"the page is {scroll} px wide on a {width} px phone: {wide[:3]}"


def test_print_hides_the_frame(browser, address):
    result = visit(browser, address, "intro.html")
    result.page.emulate_media(media="print")
    for part in (".bd-sidebar-primary", ".header-article__inner"):
        assert not result.page.locator(part).first.is_visible(), f"{part} is printed"
    result.page.context.close()


def test_search_finds_a_word(browser, address):
    result = visit(browser, address, "search.html?q=backbone")
    result.page.locator("#search-results li a").first.wait_for(timeout=20_000)
    titles = result.page.locator("#search-results li > a").all_inner_texts()
    assert "Glossary" in titles
    assert result.errors == [] and result.outside == []
    result.page.context.close()


def test_sliders_move_the_curve(browser, address):
    """The three sliders of the page on noise, by the keyboard, without a kernel behind them."""
    path = "chapters/math_of_sgd/stochastic_gradients.html"
    with visit(browser, address, path).page as page:
        curve = page.locator("polyline.now")
        sliders = page.get_by_role("slider")
        assert sliders.count() == 3
        for number in range(3):
            before = curve.get_attribute("points")
            value = page.locator("output").nth(number).inner_text()
            sliders.nth(number).press("ArrowRight")
            assert curve.get_attribute("points") != before
            assert page.locator("output").nth(number).inner_text() != value


def test_colab_button_leads_to_the_notebook(desktop):
    links = desktop.page.locator("a[href*='colab.research.google.com']").evaluate_all(
        "all => all.map(a => a.href)"
    )
    name = urllib.parse.urlparse(desktop.page.url).path.removesuffix(".html").lstrip("/")
    if name.startswith("chapters/"):
        repository = "github/citynb/fine-tuning-for-cities/blob/main"
        assert set(links) == {f"https://colab.research.google.com/{repository}/{name}.ipynb"}
    else:
        assert links == []


# --- without a browser -------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_book_is_built_from_the_present_source(name):
    built = [p for p in (BOOK / "_sources").glob(f"{name}.*") if p.suffix in (".ipynb", ".md")]
    assert built, f"{name} is not in the built book: run `make book`"
    assert built[0].read_bytes() == (ROOT / built[0].relative_to(BOOK / "_sources")).read_bytes(), (
        "the built book is older than its source: run `make book`"
    )


class Anchors(HTMLParser):
    """Collect the links of a page and the places that a link can lead to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get("id"):
            self.ids.add(attributes["id"])
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])


@functools.cache
def anchors(path):
    return Anchors((BOOK / path).read_text())


@pytest.mark.parametrize("name", PAGES)
def test_links_inside_the_book_lead_somewhere(name):
    dead = []
    for link in anchors(f"{name}.html").links:
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), parts.path))
        path = urllib.parse.unquote(path) if parts.path else f"{name}.html"
        if not (BOOK / path).exists():
            dead.append(link)
        elif parts.fragment and path.endswith(".html"):
            if urllib.parse.unquote(parts.fragment) not in anchors(path).ids:
                dead.append(link)
    assert dead == []
