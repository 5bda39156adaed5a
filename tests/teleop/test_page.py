"""The page as a person meets it: a real Chromium against a hub that lives in the test."""

import threading
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from comms.pb import fresh_pb2, types_pb2
from user_system.core.errors import MissingError, SecurityError
from user_system.core.modes import Mode
from user_system.teleop.page import Page

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
needs_chromium = [
    pytest.mark.system,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}"),
]


def picture(step, tint):
    image = np.zeros((96, 128, 3), np.uint8)
    image[:, :, tint] = np.linspace(20, 120, 128, dtype=np.uint8)
    x = (step * 3) % 108
    image[60:80, x : x + 20] = (230, 190, 80)
    return simplejpeg.encode_jpeg(image, quality=80)


class Ticker(threading.Thread):
    """Lets the world's robots move: states twenty times a second, pictures with them."""

    def __init__(self, world):
        super().__init__(daemon=True)
        self.world, self.over, self.sequence = world, threading.Event(), 0

    def run(self):
        while not self.over.wait(0.05):
            self.sequence += 1
            for tint, robot in enumerate(self.world.modes):
                with self.world.lock:
                    if self.world.modes[robot] in (Mode.AUTO, Mode.EVAL, Mode.DEMO):
                        self.world.steps[robot] = (self.world.steps[robot] + 1) % 60
                preview = fresh_pb2.Preview(
                    robot=robot,
                    camera="front",
                    sequence=self.sequence,
                    jpeg=picture(self.sequence, 1 + tint),
                )
                self.world.show(self.world.state(robot), preview)


@pytest.fixture
def ticker(world):
    ticker = Ticker(world)
    ticker.start()
    yield ticker
    ticker.over.set()
    ticker.join()


@pytest.fixture
def served(ticker, make_page):
    page = Page(make_page(), port=0)
    page.start()
    yield page
    page.close()


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, served):
    opened = browser.new_page()
    opened.set_default_timeout(60_000)
    problems = []
    opened.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(f"{served.url}/#ann:ann-secret")
    opened.wait_for_selector('[data-robot="arm-1"] canvas')
    yield opened
    assert not problems


def card(tab, robot="arm-1"):
    return tab.locator(f'[data-robot="{robot}"]')


def wait_mode(tab, mode, robot="arm-1"):
    tab.wait_for_selector(f'[data-robot="{robot}"] .mode[data-mode="{mode}"]')


def test_it_refuses_to_listen_off_loopback_without_tls(make_page):
    with pytest.raises(SecurityError, match="without TLS"):
        Page(make_page(), host="0.0.0.0")


def test_a_port_in_use_is_one_clear_line(make_page, served):
    second = Page(make_page(), port=served.port)
    with pytest.raises(MissingError, match="cannot listen"):
        second.start()


class TestChromium:
    pytestmark = needs_chromium

    def test_cards_show_live_robots_and_the_secret_leaves_the_address(self, tab, served):
        assert "secret" not in tab.url
        assert tab.locator(".card").count() == 2
        wait_mode(tab, "auto")
        canvas = tab.locator('[data-robot="arm-1"] canvas')
        first = int(canvas.get_attribute("data-sequence"))
        tab.wait_for_function(
            "n => Number(document.querySelector('[data-robot=\"arm-1\"] canvas').dataset.sequence)"
            " > n + 5",
            arg=first,
        )
        # The status comes on its own, after the states.
        tab.wait_for_function("() => document.querySelector('#figures').innerText.includes('1240')")
        assert "not a safety function" in tab.locator("footer").inner_text()

    def test_a_robot_that_acts_with_old_weights_is_shown(self, tab, world):
        facts = tab.locator('[data-robot="arm-1"] .facts')
        wait_mode(tab, "auto")
        assert "stale" not in facts.inner_text()
        world.stale_s = 42.4
        tab.wait_for_function(
            "() => document.querySelector('[data-robot=\"arm-1\"] .facts').innerText"
            ".includes('7, 42 s stale')"
        )

    def test_a_whole_intervention_by_keyboard(self, tab, world, until):
        wait_mode(tab, "auto")
        tab.keyboard.press("Space")
        wait_mode(tab, "hold")
        assert world.leases["arm-1"].operator == "ann"
        tab.keyboard.press("r")
        wait_mode(tab, "recovery")
        tab.keyboard.down("w")
        until(lambda: sum(c.action[0] > 0.019 for c in world.commands) >= 3)
        tab.keyboard.up("w")
        until(lambda: world.commands[-1].action[0] == 0.0)
        moving = [c for c in world.commands if c.action[0] > 0]
        assert np.isnan(moving[0].action[3])  # the gripper stays as it is
        assert all(c.valid_ms <= 500 and c.boot == "boot-1" for c in moving)
        sequences = [c.sequence for c in world.commands]
        assert sequences == sorted(set(sequences))
        tab.keyboard.press("c")
        wait_mode(tab, "correction")
        tab.keyboard.press("g")
        until(lambda: world.commands[-1].action[3] == 0.0)
        tab.keyboard.press("y")
        wait_mode(tab, "hold")
        assert ("arm-1", "done", "ann", True) in world.asked
        tab.keyboard.press("h")
        until(lambda: "arm-1" not in world.leases)
        wait_mode(tab, "auto")
        assert [event for _, event, _, _ in world.asked] == [
            "hold",
            "recover",
            "correct",
            "done",
            "hand_back",
        ]

    def test_a_state_that_is_older_than_an_answer_does_not_take_the_mode_back(
        self, tab, world, ticker
    ):
        wait_mode(tab, "auto")
        ticker.over.set()
        ticker.join()
        late = world.state("arm-1")
        late.step = 4711
        tab.keyboard.press("Space")
        wait_mode(tab, "hold")
        world.show(late)
        tab.wait_for_selector('[data-robot="arm-1"] dd:text-is("4711")')
        assert card(tab).locator(".mode").get_attribute("data-mode") == "hold"
        world.modes["arm-1"] = Mode.FAULT
        world.show(world.state("arm-1"))
        wait_mode(tab, "fault")

    def test_escape_stops_and_only_a_person_releases(self, tab, world, until):
        wait_mode(tab, "auto")
        tab.keyboard.press("2")
        tab.keyboard.press("Escape")
        wait_mode(tab, "estop", "arm-2")
        assert {stop.robot for stop in world.stops} == {"arm-2"}
        tab.keyboard.press("Space")
        until(lambda: "arm-2" in world.leases)
        tab.wait_for_selector('[data-robot="arm-2"] [data-do="release"]:enabled')
        tab.keyboard.press("l")
        wait_mode(tab, "hold", "arm-2")

    def test_leaving_the_window_rests_holds_and_gives_the_robot_up(self, tab, world, until):
        tab.keyboard.press("Space")
        wait_mode(tab, "hold")
        tab.keyboard.press("r")
        wait_mode(tab, "recovery")
        tab.keyboard.down("w")
        until(lambda: any(c.action[0] > 0 for c in world.commands))
        tab.evaluate("dispatchEvent(new Event('blur'))")
        until(lambda: "arm-1" not in world.leases)
        assert world.commands[-1].action[0] == 0.0
        assert world.modes["arm-1"] is Mode.HOLD

    def test_a_closed_tab_gives_the_robot_up(self, browser, served, world, until):
        tab = browser.new_page()
        tab.goto(f"{served.url}/#ann:ann-secret")
        tab.wait_for_selector('[data-robot="arm-1"] canvas')
        tab.keyboard.press("Space")
        until(lambda: "arm-1" in world.leases)
        tab.close()
        until(lambda: "arm-1" not in world.leases)

    def test_a_second_person_is_told_who_holds_and_is_next(
        self, tab, browser, served, world, until
    ):
        tab.keyboard.press("Space")
        wait_mode(tab, "hold")
        other = browser.new_context().new_page()
        other.goto(f"{served.url}/#bob:bob-secret")
        other.wait_for_selector("text=held by ann")
        other.keyboard.press("Space")
        other.wait_for_selector("text=is held by ann")
        assert world.leases["arm-1"].operator == "ann"
        tab.keyboard.press("h")  # the page of the second has not given up trying
        until(lambda: "arm-1" in world.leases and world.leases["arm-1"].operator == "bob")
        other.close()

    def test_a_demonstration_by_buttons(self, tab, world):
        world.modes["arm-1"] = Mode.HOLD
        world.purposes["arm-1"] = types_pb2.PURPOSE_COLLECT
        world.helps["arm-1"] = "Waits for a demonstration."
        wait_mode(tab, "hold")
        tab.wait_for_selector("text=Waits for a demonstration.")
        card(tab).locator('[data-do="take"]').click()
        card(tab).locator('[data-do="demonstrate"]:enabled').click()
        wait_mode(tab, "demo")
        card(tab).locator('[data-do="success"]:enabled').click()
        wait_mode(tab, "hold")
        assert ("arm-1", "done", "ann", True) in world.asked

    def test_a_viewer_sees_everything_and_may_only_stop(self, browser, served, world, until):
        tab = browser.new_page()
        tab.goto(f"{served.url}/#vic:vic-secret")
        tab.wait_for_selector('[data-robot="arm-1"] canvas')
        enabled = tab.locator('[data-robot="arm-1"] [data-do]:enabled')
        assert [b.get_attribute("data-do") for b in enabled.all()] == ["estop"]
        tab.keyboard.press("Escape")
        until(lambda: world.stops)
        tab.close()

    def test_the_login_form_says_what_is_wrong_and_lets_in(self, browser, served):
        tab = browser.new_page()
        tab.goto(served.url)
        tab.fill("#login-name", "ann")
        tab.fill("#login-token", "wrong")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("text=name or token is wrong")
        tab.fill("#login-token", "ann-secret")
        tab.keyboard.press("Enter")
        tab.wait_for_selector(".card")
        assert not tab.evaluate("document.cookie")  # hidden from scripts
        tab.close()

    def test_a_lost_hub_is_named_on_the_page(self, tab, world):
        world.away = True
        tab.wait_for_selector("text=the hub does not answer")
        world.away = False
        tab.wait_for_selector("#link.up")


def test_the_whole_page_is_small_and_asks_nobody_else():
    folder = Path(__file__).parents[2] / "user_system" / "teleop" / "static"
    files = [path for path in folder.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 150_000
    for path in files:
        text = path.read_text()
        foreign = text.replace("http://www.w3.org/2000/svg", "")
        assert "://" not in foreign.replace("${scheme}://${location.host}", ""), path.name
        assert "innerHTML" not in text
        assert "eval(" not in text
