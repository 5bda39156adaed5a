"""A real Chromium is brought to trust the page, by the steps that the page itself shows."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from comms.authority import Authority
from comms.credentials import Role, printed_fingerprint
from user_system.teleop.app import TeleopConfig, make_app
from user_system.teleop.auth import Accounts
from user_system.teleop.auth import Role as PersonRole
from user_system.teleop.page import Page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SENSITIVE = "() => [isSecureContext, 'hid' in navigator, 'xr' in navigator, 'serial' in navigator]"
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}"),
    pytest.mark.skipif(not shutil.which("certutil"), reason="no certutil (libnss3-tools)"),
]


@pytest.fixture
def pki(tmp_path):
    directory = tmp_path / "pki"
    Authority.open(directory).issue("teleop", Role.SERVICE, ("localhost", "127.0.0.1"))
    return directory


@pytest.fixture
def page(world, pki):
    app = make_app(
        TeleopConfig(run="demo", secure=True, authority=(pki / "ca.crt").read_bytes()),
        accounts=Accounts({"ann": (PersonRole.OPERATOR, "ann-secret")}),
        hub=world,
        fresh=world,
    )
    page = Page(app, port=0, certificate=pki / "teleop.pem")
    page.start()
    yield page
    page.close()


@pytest.fixture
def browse(tmp_path):
    """Chromium with a home of its own, where what it trusts is kept."""
    playwright = pytest.importorskip("playwright.sync_api")
    home = tmp_path / "home"
    with playwright.sync_playwright() as driver:
        opened = []

        def start():
            browser = driver.chromium.launch(
                executable_path=str(CHROMIUM),
                args=FLAGS,
                env={**os.environ, "HOME": str(home)},
            )
            opened.append(browser)
            return browser.new_page()

        yield start
        for browser in opened:
            browser.close()


def import_as_the_steps_say(home, certificate):
    """What "Manage certificates, Import" does: into the NSS database of the user."""
    places = (home / ".local" / "share" / "pki" / "nssdb", home / ".pki" / "nssdb")
    place = next((path for path in places if path.exists()), places[1])
    place.mkdir(parents=True, exist_ok=True)
    database = ["-d", f"sql:{place}"]
    if not (place / "cert9.db").exists():
        subprocess.run(["certutil", *database, "-N", "--empty-password"], check=True)
    argv = ["certutil", *database, "-A", "-n", "lab", "-t", "C,,", "-i", str(certificate)]
    subprocess.run(argv, check=True)


def test_chromium_refuses_before_and_finds_a_secure_context_after(page, browse, pki, tmp_path):
    from playwright.sync_api import Error

    with pytest.raises(Error, match="ERR_CERT_AUTHORITY_INVALID"):
        browse().goto(page.url)
    # By the way that a person takes: past the warning, to the steps, and the file.
    steps = browse_past_warnings(browse, page)
    printed = printed_fingerprint((pki / "ca.crt").read_bytes())
    assert steps.locator("#fingerprint").inner_text() == printed
    with steps.expect_download() as downloading:
        steps.locator("a[download]").click()
    file = tmp_path / "downloaded.crt"
    downloading.value.save_as(file)
    assert file.read_bytes() == (pki / "ca.crt").read_bytes()
    import_as_the_steps_say(tmp_path / "home", file)
    problems = []
    for name in ("localhost", "127.0.0.1"):
        tab = browse()
        tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        tab.goto(f"https://{name}:{page.port}/#ann:ann-secret")
        tab.wait_for_selector(".card", timeout=60_000)
        assert tab.evaluate(SENSITIVE) == [True, True, True, True]
    assert not problems


def browse_past_warnings(browse, page):
    tab = browse()
    context = tab.context.browser.new_context(ignore_https_errors=True)
    steps = context.new_page()
    steps.goto(f"{page.url}/trust")
    return steps
