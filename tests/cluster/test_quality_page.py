"""The page of the quality report: complete, honest, without scripts, and quiet in a browser."""

import base64
import hashlib
import html.parser
import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from user_system.cli import app
from user_system.cluster import quality_page
from user_system.core.errors import ConfigError, MissingError
from user_system.replay.episodes import Episodes
from user_system.replay.quality import Options, examine
from user_system.replay.store import Store, reader

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECTIONS = {
    "read",
    "outcome",
    "divergence",
    "diversity",
    "situations",
    "smoothness",
    "help",
    "timing",
    "outliers",
    "method",
}
VOID = {"meta", "link", "br", "img", "hr", "input"}


@pytest.fixture(scope="module")
def example():
    """The example whose habits are known."""
    path = ROOT / "examples" / "quality_store.py"
    spec = importlib.util.spec_from_file_location("quality_store", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["quality_store"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["quality_store"]


@pytest.fixture(scope="module")
def store(example, tmp_path_factory):
    path = tmp_path_factory.mktemp("quality") / "pick"
    example.make(path)
    return path


@pytest.fixture(scope="module")
def report(store):
    with reader(store).open() as env:
        return examine(Episodes(env), Options(resamples=300))


@pytest.fixture(scope="module")
def page(report):
    return quality_page.render(report)


class Reader(html.parser.HTMLParser):
    """Collects what a page is made of, and whether its elements close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.loose = [], Counter(), Counter(), [], []
        self.styled, self.used, self.text = 0, set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags[tag] += 1
        self.ids[values.get("id")] += 1
        self.styled += "style" in values or any(name.startswith("on") for name in values)
        for name in ("href", "xlink:href", "src"):
            if name in values:
                self.links.append(values[name])
        self.used |= set(re.findall(r"url\(#([^)]+)\)", values.get("clip-path", "") or ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.loose.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_it_finds_the_habits_that_the_example_has(report):
    said = "\n".join(finding.text for finding in report.findings)
    assert "arm-2 misses" in said
    assert "arm-2 goes to less predictable states than arm-1" in said
    assert re.search(r"DEMO: ben acts less consistently", said)
    assert re.search(r"CORRECTION: ben moves less smoothly than ann", said)
    assert "the usual action of cleo" in said
    # Ann and ben differ in noise alone: an interval that begins at 0 is no finding.
    assert len(re.findall("the usual action of", said)) == 1
    assert "arm-1-022" in [one.episode for one in report.tasks[0].elsewhere]


def test_it_is_one_sound_file(page):
    found = Reader(page)
    assert not found.loose
    assert not found.open
    assert not found.tags["script"]
    assert not found.styled
    del found.ids[None]
    assert max(found.ids.values()) == 1
    assert found.used <= set(found.ids)
    for link in found.links:
        assert link.startswith("https://arxiv.org/") or link.removeprefix("#") in found.ids
    assert set(found.ids) >= SECTIONS


def test_the_policy_names_the_style_sheet_and_allows_nothing_else(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "url(" not in style.replace("url(#", "")
    assert "@import" not in style


def test_the_same_report_is_the_same_page(report, page):
    assert quality_page.render(report) == page


def test_every_colour_of_a_picture_is_the_style_sheets(page):
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) >= 10
    for picture in pictures:
        assert not re.search(r"#0000(0[1-5]|1[1-8])\b", picture)
        assert not re.search(r'(fill|stroke)="#(?!ffffff)', picture), "a colour of its own"
        assert 'role="img"' in picture
        assert "aria-label" in picture


def test_names_are_text_and_never_markup(tmp_path, example):
    evil = "<script>alert('ann')</script>"
    example.PEOPLE[evil] = example.PEOPLE["ann"]
    try:
        example.make(tmp_path / "s", demos=6, episodes=6)
    finally:
        del example.PEOPLE[evil]
    with reader(tmp_path / "s").open() as env:
        text = quality_page.render(examine(Episodes(env), Options(resamples=100)))
    assert not Reader(text).tags["script"]
    assert "&lt;script&gt;alert" in text


@pytest.mark.parametrize("demos", [0, 1], ids=["empty", "one-episode"])
def test_with_next_to_nothing_it_says_so_and_invents_nothing(tmp_path, example, demos):
    with Store(tmp_path / "s").open(create=True) as store:
        for _ in range(demos):
            arm = example.Arm("arm-1", example.np.random.default_rng(1), 0.001, 0.0)
            example.put(store, example.demonstrate(arm, "ann"))
        found = examine(Episodes(store.env), Options(resamples=100))
    text = quality_page.render(found)
    read = Reader(text)
    assert not read.loose
    said = " ".join(read.text)
    assert ("Nothing to judge yet" in said) == (demos == 0)
    if demos:
        assert "too few: 1 of 5 episodes" in said
        assert "Too few episodes to call one of them unusual" in said
        assert "nan" not in said.lower().split()


class TestWriting:
    def test_it_replaces_a_report_and_nothing_else(self, report, tmp_path):
        path = tmp_path / "deep" / "report.html"
        quality_page.write(report, path)
        quality_page.write(report, path)
        assert [p.name for p in path.parent.iterdir()] == ["report.html"]
        path.write_text("my thesis")
        with pytest.raises(ConfigError, match="no report of ours"):
            quality_page.write(report, path)
        assert path.read_text() == "my thesis"
        with pytest.raises(ConfigError):
            quality_page.write(report, tmp_path)

    def test_a_missing_library_is_named_with_what_to_do(self, report, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingError, match=r"user-system\[head\]"):
            quality_page.write(report, tmp_path / "r.html")


class TestCommand:
    def call(self, *arguments):
        return CliRunner().invoke(app, ["replay", "report", *map(str, arguments)])

    def test_it_writes_the_page_and_says_what_stands_out(self, store, tmp_path):
        path = tmp_path / "r.html"
        done = self.call(store, "--out", path)
        assert done.exit_code == 0, done.output
        assert "arm-2 misses" in done.output
        assert "175 episodes" in done.output
        assert path.read_text().startswith("<!doctype html>")

    def test_numbers_alone_need_no_page(self, store, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        done = self.call(store, "--json", "--robot", "arm-1")
        value = json.loads(done.stdout)
        assert value["read"]["robots"] == ["arm-1"]
        measures = {g["segment"]: g["measures"] for g in value["tasks"][0]["groups"]}
        assert 0 < measures["AUTO"]["divergence"]["value"] < 1
        assert not list(tmp_path.iterdir())

    def test_a_file_of_others_is_refused_before_anything_is_read(self, tmp_path):
        (tmp_path / "r.html").write_text("mine")
        done = self.call(tmp_path / "no store", "--out", tmp_path / "r.html")
        assert isinstance(done.exception, ConfigError)
        assert "no report of ours" in str(done.exception)


@pytest.mark.system
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}")
class TestChromium:
    @pytest.fixture
    def browser(self):
        playwright = pytest.importorskip("playwright.sync_api")
        with playwright.sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
            yield chromium
            chromium.close()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
    def test_it_opens_quietly_and_fits(self, browser, report, tmp_path, width, scheme):
        path = tmp_path / "r.html"
        quality_page.write(report, path)
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.set_default_timeout(60_000)
        problems, requests = [], []
        tab.on("console", lambda m: problems.append(m.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(path.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("getComputedStyle(document.body).fontSize") == "16px"
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 384) == (scheme == "light")
        bar = "getComputedStyle(document.querySelector('.fill-demo')).fill"
        demo = "getComputedStyle(document.documentElement).getPropertyValue('--demo')"
        assert as_rgb(tab.evaluate(demo)) == tab.evaluate(bar)
        tab.locator("#divergence summary").click()
        assert tab.locator("#divergence table").is_visible()
        tab.locator(".findings a").first.click()
        assert tab.url.endswith("#timing")
        smallest = tab.evaluate(
            "Math.min(...[...document.querySelectorAll('svg text')]"
            ".map(t => t.getBoundingClientRect().height))"
        )
        assert smallest >= 9
        assert requests == [path.as_uri()]
        assert not problems
        tab.close()


def as_rgb(colour):
    """Return ``#rrggbb`` as a browser computes it."""
    red, green, blue = (int(colour.strip()[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"
