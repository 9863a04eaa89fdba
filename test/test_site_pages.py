"""The documentation site, built and opened in a browser: pages on a phone and on a desk, links, search, versions."""

import functools
import html.parser
import http.server
import importlib.util
import json
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
from test_site import build_site

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
VERSION = build_site.name_of_tree((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
PHONE, DESK = 390, 1400  # px


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site: what this tree makes, beside an older release of one page; or why there is none."""
    absent = [name for name in ("furo", "myst_parser", "sphinx") if importlib.util.find_spec(name) is None]
    if absent:
        return f"there is no {', '.join(absent)}: see docs/requirements.txt"
    out = tmp_path_factory.mktemp("site")
    (out / "0.0.1").mkdir()
    (out / "0.0.1/index.html").write_text("<!doctype html><title>0.0.1</title>")
    (out / VERSION).mkdir()
    (out / VERSION / "renamed.html").touch()
    done = subprocess.run([sys.executable, ROOT / "docs/build_site.py", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def address(site):
    """Where a server of this machine shows the site, with a slash at its end."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def needed(site, chromium, missing):
    if isinstance(site, str):
        missing("docs", site)
    if isinstance(chromium, str):
        missing("chromium", chromium)


@pytest.fixture
def folder(site):
    """The folder of this tree's version."""
    return site / VERSION


@pytest.fixture
def open_tab(chromium, address):
    """open_tab(**of the browser's context): a tab that notes what a reader should not meet, in ``tab.complaints``."""
    contexts = []

    def open_one(**options):
        contexts.append(chromium.new_context(**options))
        tab = contexts[-1].new_page()
        tab.complaints = []
        tab.on("console", lambda message: tab.complaints.append(f"{tab.url}: {message.text}"))
        tab.on("pageerror", lambda error: tab.complaints.append(f"{tab.url}: {error}"))
        tab.on("request", lambda request: note_request(tab, request.url))
        return tab

    def note_request(tab, url):
        if not url.startswith((address, "file:", "data:")):
            tab.complaints.append(f"{tab.url} asks for {url}")

    yield open_one
    for context in contexts:
        context.close()


def pages_of(folder):
    """All but those that hold the source of a module, which are code from top to bottom."""
    found = sorted(str(page.relative_to(folder)) for page in folder.rglob("*.html") if "_modules" not in page.parts)
    assert {"index.html", "api.html", "measurements/stars.html", "search.html"} <= set(found)
    return found


def test_no_page_needs_sideways_scrolling_or_another_host(open_tab, address, folder):
    """Tables and code alone scroll, within themselves; nothing is fetched from elsewhere; nothing complains."""
    scrolled = """[document.scrollingElement, ...document.querySelectorAll(".main *")].filter(one =>
        one.scrollWidth > one.clientWidth && one.clientWidth > 0 && getComputedStyle(one).overflowX !== "hidden" &&
        (one === document.scrollingElement || getComputedStyle(one).overflowX !== "visible") &&
        !one.matches(".table-wrapper, pre")).map(one => one.outerHTML.slice(0, 60))"""
    tab = open_tab()
    wide = {}
    for page in pages_of(folder):
        tab.set_viewport_size({"width": PHONE, "height": 844})
        tab.goto(f"{address}{folder.name}/{page}")
        for width in (PHONE, DESK):
            tab.set_viewport_size({"width": width, "height": 844})
            if found := tab.evaluate(scrolled):
                wide[page, width] = found
    assert wide == {}
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_follows_the_colours_of_the_system(open_tab, address, folder, scheme):
    tab = open_tab(color_scheme=scheme)
    tab.goto(f"{address}{folder.name}/index.html")
    for place in ("article p", ".versions label"):
        front = tab.locator(place).first.evaluate("one => getComputedStyle(one).color")
        back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        behind, before = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (back, front))
        assert (behind > before) == (scheme == "light")


def test_a_cut_off_table_can_be_scrolled(open_tab, address, folder):
    tab = open_tab(viewport={"width": PHONE, "height": 844})
    tab.goto(f"{address}{folder.name}/performance.html")
    table = tab.locator("article .table-wrapper").first
    assert table.evaluate("one => one.scrollWidth > one.clientWidth && getComputedStyle(one).overflowX") == "auto"
    last = table.locator("tr").nth(1).locator("td").last
    last.scroll_into_view_if_needed()
    box = last.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE


class Links(html.parser.HTMLParser):
    """The targets of a page's links and pictures, and the anchors that it has."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.anchors = set(), {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        self.targets.update(filter(None, (attributes.get("href"), attributes.get("src"))))


def test_every_link_leads_somewhere(site, folder):
    """To a file of the site, and to an anchor that is there. Nothing is fetched."""
    read = {page: Links(page.read_text(encoding="utf-8")) for page in folder.rglob("*.html")}
    read[site / "index.html"] = Links((site / "index.html").read_text(encoding="utf-8"))
    read[site / "index.html"].anchors.add("versions")  # it is read by the page's script
    broken, checked = [], 0
    for page, links in read.items():
        for target in links.targets:
            url = urllib.parse.urlsplit(target)
            if url.scheme:
                continue
            place = (page.parent / urllib.parse.unquote(url.path)).resolve() if url.path else page
            checked += 1
            anchors = read[place].anchors if place in read else {""}
            if not place.is_file() or (place.suffix == ".html" and url.fragment not in anchors):
                broken.append((str(page.relative_to(site)), target))
    assert checked > 1000
    assert broken == []


@pytest.mark.parametrize("page", ["index.html", "measurements/stars.html"])
@pytest.mark.parametrize("how", ["server", "file"])
def test_search_finds_pages_without_a_network(open_tab, address, folder, page, how):
    start = f"{address}{folder.name}/" if how == "server" else f"{folder.as_uri()}/"
    tab = open_tab()
    tab.goto(start + page)
    tab.locator("input[name=q]").first.fill("rebase")
    tab.keyboard.press("Enter")
    results = tab.locator("#search-results ul.search li a")
    tab.get_by_text(re.compile(r"found \d+ page")).wait_for()  # until then results come one by one
    addresses = results.evaluate_all("links => links.map(link => link.href)")
    assert any(one.startswith(f"{start}semantics.html") for one in addresses), addresses
    results.first.click()
    tab.wait_for_load_state()
    assert tab.url.startswith(start)
    assert tab.locator("article h1").count() == 1
    if how == "server":  # from a file the browser shows no excerpts, and says so
        assert tab.complaints == []


# ---------------------------------------------------------------------------------------------------- versions


@pytest.fixture
def newer(site, folder):
    """A release after this tree's version, which has one page more than the first."""
    release = site / "99.0"
    (release / "measurements").mkdir(parents=True)
    for page in ("index.html", "measurements/stars.html"):
        (release / page).write_text(f"<!doctype html><title>99.0</title><p>{page}")
    before = (site / "versions.json").read_text()
    (site / "versions.json").write_text(json.dumps({"newest": "99.0", "versions": [folder.name, "99.0", "0.0.1"]}))
    yield "99.0"
    (site / "versions.json").write_text(before)
    for page in ("index.html", "measurements/stars.html"):
        (release / page).unlink()
    (release / "measurements").rmdir()
    release.rmdir()


@pytest.mark.parametrize("page", ["index.html", "measurements/stars.html", "measurements/windows.html"])
def test_the_list_of_versions_leads_to_the_same_page_or_to_the_first(open_tab, address, folder, newer, page):
    tab = open_tab()
    tab.goto(f"{address}{folder.name}/{page}")
    choice = tab.get_by_label("Version")
    choice.wait_for()
    assert choice.locator("option").all_inner_texts() == [folder.name, "99.0 (newest)", "0.0.1"]
    assert choice.input_value() == folder.name
    choice.select_option("99.0")
    tab.wait_for_url(f"{address}99.0/**")
    assert tab.url == f"{address}99.0/" + ("index.html" if "windows" in page else page)


def test_a_banner_leads_to_the_newest_release(open_tab, address, folder, newer):
    tab = open_tab()
    tab.goto(f"{address}{folder.name}/measurements/stars.html")
    banner = tab.locator("aside.other-version")
    banner.wait_for()
    assert "the newest release is 99.0" in banner.inner_text()
    banner.get_by_role("link").click()
    tab.wait_for_url(f"{address}99.0/measurements/stars.html")


def test_the_newest_release_has_no_banner(open_tab, address, site, folder, newer):
    (site / "versions.json").write_text(json.dumps({"newest": folder.name, "versions": [folder.name, "0.0.1"]}))
    tab = open_tab()
    tab.goto(f"{address}{folder.name}/index.html")
    tab.get_by_label("Version").wait_for()
    assert tab.locator("aside.other-version").count() == 0
    assert tab.complaints == []


def test_pages_opened_from_a_file_link_to_the_list_of_versions(open_tab, site, folder):
    tab = open_tab()
    tab.goto((folder / "measurements/stars.html").as_uri())
    assert not tab.get_by_label("Version").is_visible()
    tab.locator(".versions a").click()
    tab.wait_for_url("**/index.html#versions")
    assert tab.get_by_role("link").all_inner_texts() == [folder.name, "0.0.1"]
    assert tab.complaints == []
    tab.goto((site / "index.html").as_uri())
    tab.wait_for_url(f"**/{'0.0.1' if VERSION == 'dev' else VERSION}/index.html")  # the newest release


def test_no_page_of_an_earlier_build_stays(folder):
    assert not (folder / "renamed.html").exists()


def test_the_folders_of_other_versions_are_left_alone(site):
    assert (site / "0.0.1/index.html").read_text() == "<!doctype html><title>0.0.1</title>"
    assert json.loads((site / "versions.json").read_text())["versions"] == [VERSION, "0.0.1"]


def test_pages_name_no_generator_and_no_host(folder):
    """Footers: the project and the theme alone."""
    for page in pages_of(folder):
        text = (folder / page).read_text(encoding="utf-8")
        footer = re.sub(r"<[^>]+>|\s+", " ", text[text.rindex("<footer") :].partition("</footer>")[0])
        assert not re.search(r"sphinx|/work|localhost", footer, re.IGNORECASE), (page, footer)
