"""Who may call what: every route, every role, every trick with host, origin and cookie."""

import asyncio
import json

import httpx
import pytest
from starlette.routing import Route, WebSocketRoute

from user_system.teleop.access import HEADERS, MAX_BODY, RULES, find_rule
from user_system.teleop.auth import Role

ORIGIN = "http://127.0.0.1:8765"
SECRETS = {"vic": "vic-secret", "ann": "ann-secret", "eng": "eng-secret"}
ROLES = {"vic": Role.VIEWER, "ann": Role.OPERATOR, "eng": Role.ENGINEER}


def client_of(app, origin=ORIGIN, base=ORIGIN):
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url=base, headers={"origin": origin}
    )


async def login(client, name):
    return await client.post("/api/login", json={"operator": name, "token": SECRETS[name]})


def run(app, scenario, **options):
    async def main():
        async with app.router.lifespan_context(app), client_of(app, **options) as client:
            return await scenario(client)

    return asyncio.run(main())


def every_route(app):
    for route in app.routes:
        if isinstance(route, WebSocketRoute):
            yield "WEBSOCKET", route.path
        elif isinstance(route, Route):
            for method in sorted(route.methods):
                yield method, route.path


def test_the_table_and_the_routes_are_the_same_set(make_page):
    assert set(every_route(make_page())) == set(RULES)


def test_every_route_refuses_those_below_its_role(make_page, world):
    app = make_page()

    async def walk(client):
        for (method, path), role in RULES.items():
            if method == "WEBSOCKET":
                continue
            url = path.replace("{name}", "arm-1")
            anonymous = await client.request(method, url, json={})
            if role is None:
                assert anonymous.status_code not in (401, 403), path
            else:
                assert anonymous.status_code == 401, path
        for name, has in ROLES.items():
            await login(client, name)
            for (method, path), role in RULES.items():
                if method == "WEBSOCKET" or path in ("/api/login", "/api/logout"):
                    continue
                url = path.replace("{name}", "arm-1")
                got = (await client.request(method, url, json={})).status_code
                allowed = role is None or has.includes(role)
                assert (got == 403) is not allowed, (name, path, got)
            client.cookies.clear()

    run(app, walk)
    assert not world.leases


def test_a_route_without_a_rule_is_refused_to_everybody(make_page):
    app = make_page()
    app.add_api_route("/api/debug", lambda: {"secret": 1}, methods=["GET"])

    async def scenario(client):
        await login(client, "eng")
        return (await client.get("/api/debug")).status_code

    assert run(app, scenario) == 403
    assert find_rule("GET", "/api/robots//claim") is None
    assert find_rule("DELETE", "/api/robots") is None


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_another_host_name_is_refused(make_page, host):
    async def scenario(client):
        return (await client.get("/", headers={"host": host})).status_code

    assert run(make_page(), scenario) == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", None])
def test_a_foreign_origin_is_refused_even_with_the_cookie(make_page, world, origin):
    async def scenario(client):
        await login(client, "ann")
        del client.headers["origin"]
        headers = {} if origin is None else {"origin": origin}
        answer = await client.post(
            "/api/robots/arm-1/ask", json={"event": "estop"}, headers=headers
        )
        return answer.status_code

    assert run(make_page(), scenario) == 403
    assert not world.stops


def test_the_cookie_is_hidden_from_scripts_and_other_sites(make_page):
    async def scenario(client):
        answer = await login(client, "ann")
        return answer.headers["set-cookie"].lower()

    cookie = run(make_page(), scenario)
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    assert "; secure" in run(make_page(secure=True), scenario)


def test_a_wrong_token_is_refused_and_guessing_is_throttled(make_page):
    async def scenario(client):
        codes = []
        for i in range(6):
            body = {"operator": "ann", "token": f"guess-{i}"}
            codes.append((await client.post("/api/login", json=body)).status_code)
        right = await login(client, "ann")
        other = await login(client, "vic")
        return codes, right.status_code, other.status_code

    codes, right, other = run(make_page(logins_per_min=3), scenario)
    assert codes == [403] * 3 + [429] * 3
    assert right == 429
    assert other == 200


def test_an_unknown_name_with_an_empty_token_is_nobody(make_page):
    async def scenario(client):
        answer = await client.post("/api/login", json={"operator": "nobody", "token": ""})
        return answer.status_code

    assert run(make_page(), scenario) == 403


def test_logging_out_ends_the_session_on_the_server(make_page):
    async def scenario(client):
        await login(client, "ann")
        stolen = dict(client.cookies)
        await client.post("/api/logout", json={})
        client.cookies.update(stolen)
        return (await client.get("/api/me")).status_code

    assert run(make_page(), scenario) == 401


def test_bodies_are_bounded(make_page):
    async def scenario(client):
        big = b'{"operator": "' + b"a" * MAX_BODY + b'"}'

        async def pieces():
            yield big[:9000]
            yield big[9000:]

        declared = await client.post("/api/login", content=big)
        chunked = await client.post("/api/login", content=pieces())
        return declared.status_code, chunked.status_code

    declared, chunked = run(make_page(), scenario)
    assert declared == 413
    assert 400 <= chunked < 500


@pytest.mark.parametrize(
    "body",
    [
        {"event": "hold", "extra": 1},
        {"event": "explode"},
        {"event": "hold", "client": "x" * 1000},
        {"event": "hold", "success": "yes"},
        ["hold"],
    ],
)
def test_malformed_bodies_are_named(make_page, body):
    async def scenario(client):
        await login(client, "ann")
        return await client.post("/api/robots/arm-1/ask", json=body)

    answer = run(make_page(), scenario)
    assert answer.status_code == 422
    assert answer.json()["error"]["text"]


def test_every_answer_carries_the_security_headers(make_page):
    async def scenario(client):
        return [await client.get("/"), await client.get("/nothing"), await client.get("/api/me")]

    for answer in run(make_page(), scenario):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    assert "default-src 'self'" in HEADERS["content-security-policy"]
    assert "unsafe" not in json.dumps(HEADERS)


def test_only_the_pages_own_files_are_served(make_page):
    async def scenario(client):
        paths = ["/static/app.js", "/static/..%2fapp.py", "/static/__init__.py", "/static/x.js"]
        return [(await client.get(path)).status_code for path in paths]

    codes = run(make_page(), scenario)
    assert codes[0] == 200
    assert all(code in (403, 404) for code in codes[1:])


def test_a_viewer_may_stop_but_nothing_else(make_page, world):
    async def scenario(client):
        await login(client, "vic")
        stop = await client.post("/api/robots/arm-1/ask", json={"event": "estop"})
        hold = await client.post("/api/robots/arm-1/ask", json={"event": "hold"})
        return stop.status_code, hold.status_code

    assert run(make_page(), scenario) == (200, 403)
    assert [(s.robot, s.operator) for s in world.stops] == [("arm-1", "vic")]


def test_claiming_needs_a_websocket_of_the_same_session(make_page, world):
    async def scenario(client):
        await login(client, "ann")
        return await client.post("/api/robots/arm-1/claim", json={"client": "invented"})

    answer = run(make_page(), scenario)
    assert answer.status_code == 409
    assert "websocket" in answer.json()["error"]["text"]
    assert not world.leases


def test_errors_of_the_hub_keep_their_kind_and_text(make_page, world, until):
    async def scenario(client):
        await login(client, "vic")
        world.away = True
        for _ in range(600):
            status = (await client.get("/api/status")).json()
            if "does not answer" in status["away"]:
                return status
            await asyncio.sleep(0.05)
        return status

    assert "does not answer" in run(make_page(), scenario)["away"]
