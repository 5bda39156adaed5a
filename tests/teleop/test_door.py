"""The page's door: the authority's certificate, how it is trusted, and hosts that join."""

import asyncio
import ssl
from types import SimpleNamespace

import httpx
import pytest

from comms.authority import Authority
from comms.credentials import Role, printed_fingerprint
from comms.pb.enrol_pb2 import JoinReply
from user_system.core.errors import LinkError, SecurityError, StoreError
from user_system.teleop import door
from user_system.teleop.access import MAX_BODY
from user_system.teleop.app import TeleopConfig, make_app
from user_system.teleop.auth import Accounts
from user_system.teleop.page import Page

URL = "https://127.0.0.1:8765"
GOOD = {
    "protocol": 1,
    "invitation": "00" * 8,
    "secret": "11" * 16,
    "csr": "csr",
    "curve": "c" * 40,
}


class FakeEnrolment:
    """Takes everybody in, or fails as it is told."""

    def __init__(self):
        self.asked = []
        self.error = None

    def join(self, request, address):
        self.asked.append((request, address))
        if self.error:
            raise self.error
        return JoinReply(
            name="arm-1", role="robot", certificate=b"CERT", authority=b"CA", facts='{"a": 1}'
        )


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pki")
    names = ("localhost", "127.0.0.1")
    Authority.open(directory).issue("teleop", Role.SERVICE, names)
    return directory


@pytest.fixture
def enrolment():
    return FakeEnrolment()


@pytest.fixture
def make(world, pki, enrolment):
    def make(**options):
        values = {"authority": (pki / "ca.crt").read_bytes(), "secure": True, **options}
        taker = values.pop("enrolment", enrolment)
        return make_app(
            TeleopConfig(run="demo", **values),
            accounts=Accounts({}),
            hub=world,
            fresh=world,
            enrolment=taker,
        )

    return make


def run(app, scenario):
    async def main():
        transport = httpx.ASGITransport(app, client=("10.0.0.9", 1234))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url=URL, headers={"origin": URL}) as client,
        ):
            return await scenario(client)

    return asyncio.run(main())


def test_the_certificate_comes_as_what_devices_install(make, pki):
    async def ask(client):
        return await client.get("/ca.crt")

    answer = run(make(), ask)
    assert answer.content == (pki / "ca.crt").read_bytes()
    assert answer.headers["content-type"] == "application/x-x509-ca-cert"


def test_the_steps_show_the_fingerprint_that_the_terminal_printed(make, pki):
    async def ask(client):
        return await client.get("/trust")

    answer = run(make(), ask)
    printed = printed_fingerprint((pki / "ca.crt").read_bytes())
    assert printed in answer.text
    assert "$" not in answer.text
    assert len(printed) == 95
    der = ssl.PEM_cert_to_DER_cert((pki / "ca.crt").read_text())
    import hashlib

    assert printed.replace(":", "").lower() == hashlib.sha256(der).hexdigest()


def test_a_page_without_an_authority_says_so(make):
    async def ask(client):
        return [(await client.get(path)).status_code for path in ("/ca.crt", "/trust")]

    assert run(make(authority=b""), ask) == [404, 404]


def test_a_host_joins(make, enrolment):
    async def ask(client):
        return await client.post("/api/join", json=GOOD)

    app = make()
    answer = run(app, ask)
    assert answer.status_code == 200
    assert answer.json() == {
        "protocols": [1],
        "name": "arm-1",
        "role": "robot",
        "certificate": "CERT",
        "authority": "CA",
        "hub_curve": "",
        "facts": {"a": 1},
    }
    request, address = enrolment.asked[0]
    assert (request.id, request.secret) == (bytes(8), b"\x11" * 16)
    assert address == "10.0.0.9"
    assert app.state.stats()["joins"] == 1


@pytest.mark.parametrize("protocol", [None, 0, 2, "1", [], 1.5])
def test_another_protocol_is_answered_with_those_there_are(make, enrolment, protocol):
    async def ask(client):
        return await client.post("/api/join", json={"protocol": protocol, "future": True})

    answer = run(make(), ask)
    assert answer.status_code == 400
    assert answer.json()["protocols"] == [1]
    assert not enrolment.asked


@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": "xyz"},
        {"secret": "00" * 40},
        {"invitation": ""},
        {"curve": "short"},
        {"csr": "x" * 5000},
        {"csr": 7},
        {"more": 1},
    ],
)
def test_malformed_requests_do_not_reach_the_hub(make, enrolment, wrong):
    async def ask(client):
        return await client.post("/api/join", json=GOOD | wrong)

    answer = run(make(), ask)
    assert answer.status_code == 422
    assert answer.json()["protocols"] == [1]
    assert not enrolment.asked


def test_large_bodies_and_other_pages_are_refused_before_that(make, enrolment):
    async def ask(client):
        large = await client.post("/api/join", content=b"x" * (MAX_BODY + 1))
        foreign = await client.post("/api/join", json=GOOD, headers={"origin": "https://evil"})
        garbage = await client.post("/api/join", content=b"{", headers={"content-type": "x/json"})
        return [large.status_code, foreign.status_code, garbage.status_code]

    assert run(make(), ask) == [413, 403, 422]
    assert not enrolment.asked


@pytest.mark.parametrize(
    ("error", "status"),
    [(SecurityError("used"), 403), (LinkError("away"), 503), (StoreError("full"), 503)],
)
def test_what_the_hub_says_arrives(make, enrolment, error, status):
    async def ask(client):
        return await client.post("/api/join", json=GOOD)

    enrolment.error = error
    app = make()
    answer = run(app, ask)
    assert answer.status_code == status
    assert answer.json() == {
        "protocols": [1],
        "error": {"kind": type(error).__name__, "text": str(error)},
    }
    assert app.state.stats()["joins_refused"] == 1


def test_a_page_without_tls_takes_nobody_in(make):
    async def ask(client):
        return await client.post("/api/join", json=GOOD)

    answer = run(make(enrolment=None), ask)
    assert answer.status_code == 503
    assert "nobody is taken in" in answer.json()["error"]["text"]


def test_guessing_is_slowed_down_for_each_address_and_for_all(make, enrolment):
    enrolment.error = SecurityError("no such invitation")

    async def ask(client):
        return [(await client.post("/api/join", json=GOOD)).status_code for _ in range(40)]

    codes = run(make(), ask)
    assert codes.count(403) in range(int(door.EACH_AT_ONCE), int(door.EACH_AT_ONCE) + 6)
    assert codes[-1] == 429
    throttled = door.Door(b"", None, SimpleNamespace(now_ns=lambda: 0))
    requests = [SimpleNamespace(client=SimpleNamespace(host=f"10.0.1.{i}")) for i in range(200)]
    let_in = 0
    for request in requests:
        try:
            throttled._admit(request)
            let_in += 1
        except door.HTTPException:
            pass
    assert let_in == door.ALL_AT_ONCE
    throttled.close()


def test_over_tls_the_cookie_is_for_tls_only(world, pki):
    from user_system.teleop.auth import Role as Person

    app = make_app(
        TeleopConfig(run="demo", secure=True),
        accounts=Accounts({"ann": (Person.OPERATOR, "ann-secret")}),
        hub=world,
        fresh=world,
    )
    page = Page(app, port=0, certificate=pki / "teleop.pem")
    page.start()
    try:
        context = ssl.create_default_context(cafile=pki / "ca.crt")
        with httpx.Client(base_url=page.url, verify=context) as client:
            answer = client.post(
                "/api/login",
                json={"operator": "ann", "token": "ann-secret"},
                headers={"origin": page.url},
            )
        assert page.url.startswith("https://")
        cookie = answer.headers["set-cookie"].lower()
        for part in ("secure", "httponly", "samesite=strict"):
            assert part in cookie
    finally:
        page.close()
