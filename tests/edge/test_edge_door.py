"""Who gets in, over real sockets: tickets, Host, Origin, cookies, paths, headers."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.edge.edge_client import WebSocket, ask, cookie, enter, viewer
from tests.edge.edge_world import KEY, EdgeServer, Rows, Sockets, a_ticket, certificate, edge_with, new_id, wait_until

from millstream.gateway import door
from millstream.gateway import server as edge_server
from millstream.gateway.session import EdgeSettings
from millstream.model import ticket as t
from millstream.model.records import Health
from millstream.store.store import StoreError

World = tuple[EdgeServer, list[str]]


@pytest.fixture
def world() -> Iterator[World]:
    yield from edge_with(2)


# -------------------------------------------------------------------- tickets


def test_a_link_is_looked_at_often_and_used_once(world: World) -> None:
    edge, (machine, _) = world
    text = a_ticket(machine)
    for method in ("GET", "HEAD", "GET"):  # a chat's preview among them
        assert ask(edge, method, f"/stream/{machine}/?ticket={text}").status == 200
    first = enter(edge, machine, text)
    assert first.status == 204
    assert enter(edge, machine, text).status == 410
    assert b"ticket.used" in enter(edge, machine, text).body
    # The same browser again, and a reload without the ticket.
    mine = str(first.headers["Set-Cookie"]).partition(";")[0]
    assert enter(edge, machine, text, Cookie=mine).status == 204
    assert ask(edge, "GET", f"/stream/{machine}/", Cookie=mine).status == 200
    assert ask(edge, "GET", f"/stream/{machine}/", Cookie=f"other=1; {mine}; x=y").status == 200


def test_the_cookie_is_for_one_path_one_browser_and_no_script(world: World) -> None:
    edge, (machine, _) = world
    parts = str(enter(edge, machine).headers["Set-Cookie"]).split("; ")
    assert parts[0].startswith("millstream=")
    assert set(parts[1:]) == {"HttpOnly", f"Path=/stream/{machine}/", "SameSite=Strict"}


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("", 403, "ticket.forged"),
        ("x", 403, "ticket.forged"),
        ("{wrong_key}", 403, "ticket.forged"),
        ("{good}A", 403, "ticket.forged"),
        ("{good}=", 403, "ticket.forged"),
        ("{spare}", 403, "ticket.forged"),
        ("{other_machine}", 403, "ticket.foreign"),
        ("{other_purpose}", 403, "ticket.foreign"),
        ("{other_account}", 403, "ticket.foreign"),
        ("{expired}", 410, "ticket.expired"),
        ("{revoked}", 403, "ticket.withdrawn"),
        ("A" * 4000, 403, "ticket.forged"),
    ],
)
def test_other_tickets_are_refused_on_page_and_exchange(world: World, text: str, status: int, code: str) -> None:
    edge, (machine, other) = world
    edge.rows.revoked.add("AKIAREVOKED")
    good = a_ticket(machine)
    raw = base64.urlsafe_b64decode(good + "=" * (-len(good) % 4))
    twins = [good[:-1] + c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"]
    spare = [w for w in twins if w != good and base64.urlsafe_b64decode(w + "=" * (-len(w) % 4)) == raw]
    sent = text.format(
        good=good,
        wrong_key=a_ticket(machine, key=b"w" * 32),
        spare=spare[0] if spare else "x",
        other_machine=a_ticket(other),
        other_purpose=a_ticket(machine, purpose="console"),
        other_account=a_ticket(machine, account="111111111111"),
        expired=a_ticket(machine, -60),
        revoked=a_ticket(machine, key_id="AKIAREVOKED"),
    )
    page = ask(edge, "GET", f"/stream/{machine}/?ticket={sent}")
    assert (page.status, code in page.text) == (status, True)
    answer = ask(edge, "POST", f"/stream/{machine}/enter", sent.encode(), Origin=edge.origin)
    assert (answer.status, code in answer.text) == (status, True)
    assert answer.headers["Set-Cookie"] is None


def test_twice_in_the_address_is_not_a_ticket(world: World) -> None:
    edge, (machine, _) = world
    assert ask(edge, "GET", f"/stream/{machine}/?ticket={a_ticket(machine)}&ticket={a_ticket(machine)}").status == 403
    assert (
        ask(edge, "GET", f"/stream/{machine}/?ticket={a_ticket(machine)}&host=evil.example&port=1&path=x").status == 200
    )


def test_key_rotation_keeps_people_in(world: World) -> None:
    edge, (machine, _) = world
    text, mine = a_ticket(machine), cookie(edge, machine)
    edge.rows.keys = (b"n" * 32, KEY)
    assert ask(edge, "GET", f"/stream/{machine}/", Cookie=mine).status == 200
    assert enter(edge, machine, text).status == 204
    edge.rows.keys = (b"n" * 32,)
    assert ask(edge, "GET", f"/stream/{machine}/", Cookie=mine).status == 403


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"state": "STOPPED", "running": False}, 409, "cad is stopped"),
        ({"state": "PENDING", "running": False, "coming": True}, 409, "cad is starting"),
        ({"state": "FAILED", "running": False, "reason": "No &lt;disk&gt; left."}, 409, "cad has failed"),
        ({"state": "SOMETHING_NEW", "running": False}, 409, "cad is something new"),
        ({"display": False}, 501, "--capacity containers"),
    ],
)
def test_a_builder_without_a_picture_says_why(world: World, fields: dict[str, object], status: int, said: str) -> None:
    edge, _ = world
    reason = str(fields.pop("reason", "")).replace("&lt;", "<").replace("&gt;", ">")
    machine = edge.rows.add("cad", reason=reason, **fields)
    answer = ask(edge, "GET", f"/stream/{machine}/?ticket={a_ticket(machine)}")
    assert answer.status == status
    assert said in answer.text
    assert "<disk>" not in answer.text
    text = a_ticket(machine)
    assert enter(edge, machine, text).status == status
    edge.rows.change(machine, state="RUNNING", running=True, display=True)
    assert enter(edge, machine, text).status == 204, "the ticket was not used up by a look at a stopped machine"


def test_gone_and_unknown_look_alike_without_a_ticket(world: World) -> None:
    edge, (machine, _) = world
    with_machine, without = (ask(edge, "GET", f"/stream/{m}/") for m in (machine, new_id()))
    assert with_machine.status == without.status == 403
    assert with_machine.body == without.body
    gone = new_id()
    assert ask(edge, "GET", f"/stream/{gone}/?ticket={a_ticket(gone)}").status == 410


def test_an_earlier_run_of_the_machine_is_over(world: World) -> None:
    edge, (machine, _) = world
    mine = cookie(edge, machine)
    edge.rows.change(machine, generation="2")
    answer = ask(edge, "GET", f"/stream/{machine}/state", Cookie=mine)
    assert (answer.status, "ticket.earlier-run" in answer.text) == (403, True)
    assert viewer(edge, machine, mine).status == 403


def test_guessing_is_slowed_and_a_right_ticket_still_passes(world: World) -> None:
    edge, (machine, _) = world
    statuses = [ask(edge, "GET", f"/stream/{machine}/?ticket=guess{n}").status for n in range(25)]
    assert statuses == [403] * 20 + [429] * 5
    assert enter(edge, machine, "wrong").status == 429
    assert ask(edge, "GET", f"/stream/{machine}/?ticket={a_ticket(machine)}").status == 200
    assert enter(edge, machine).status == 204
    # Expired or foreign tickets are no guesses: somebody had them.
    assert ask(edge, "GET", f"/stream/{machine}/?ticket={a_ticket(machine, -1)}").status == 410


def test_a_flood_of_guesses_is_no_flood_of_lines(world: World, caplog: pytest.LogCaptureFixture) -> None:
    edge, (machine, _) = world
    with caplog.at_level(logging.INFO, "millstream"):
        statuses = [ask(edge, "GET", f"/stream/{machine}/?ticket=guess{n}").status for n in range(60)]
    assert statuses.count(429) == 40
    assert len([record for record in caplog.records if record.name.startswith("millstream")]) == 1


def test_a_store_in_trouble_is_not_our_mistake(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any ticket, a wrong one too, makes the edge read the store: what a stranger can ask fills no log."""
    edge, (machine, _) = world
    mine = cookie(edge, machine)

    def busy() -> tuple[bytes, ...]:
        raise StoreError("the store is busy", code="store.busy")

    monkeypatch.setattr(edge.rows, "ticket_keys", busy)
    with caplog.at_level(logging.INFO, "millstream"):
        for _ in range(5):
            page = ask(edge, "GET", f"/stream/{machine}/?ticket=guess")
            assert (page.status, "edge.not-now" in page.text) == (503, True)
        assert ask(edge, "GET", f"/stream/{machine}/state", Cookie=mine).status == 503
        assert viewer(edge, machine, mine).status == 503
    assert not caplog.records


def test_a_whole_network_is_one_caller() -> None:
    """IPv6: who has a /64 has all of its addresses, and not one cap for each of them."""

    async def admitted() -> list[bool]:
        asked = EdgeSettings(proxies=("2001:db8:ffff::/48",))
        server = edge_server._Server(edge_server.Edge(asked, Rows(), Sockets()), 2, 5.0)
        peers = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1", *["2001:db8:ffff::1"] * 3]
        found = [server.admit(peer) for peer in peers]
        for peer in peers:
            server.left(peer)
        assert not server._open_by_address
        return [*found, server.admit("2001:db8::4")]

    assert asyncio.run(admitted()) == [True, True, False, True, True, True, True, True]


def test_guessers_are_remembered_in_bounded_room() -> None:
    guesses = door.PerMinute(2)
    for n in range(door.ADDRESSES_MAX * 2):
        assert not guesses.too_many(f"a{n}", 0.0)
    assert len(guesses._by_name) == door.ADDRESSES_MAX
    assert [guesses.too_many("x", at) for at in (0, 1, 2, 59, 60.5, 60.6, 61.5)] == [
        False,
        False,
        True,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "expected"),
    [
        ("9.9.9.9", [], [], "9.9.9.9"),
        ("9.9.9.9", ["1.1.1.1"], [], "9.9.9.9"),
        ("127.0.0.1", ["1.1.1.1"], ["127.0.0.0/8"], "1.1.1.1"),
        ("127.0.0.1", ["6.6.6.6, 1.1.1.1"], ["127.0.0.0/8"], "1.1.1.1"),
        ("127.0.0.1", ["6.6.6.6, 1.1.1.1, 10.0.0.1"], ["127.0.0.0/8", "10.0.0.0/8"], "1.1.1.1"),
        ("127.0.0.1", ["nonsense"], ["127.0.0.0/8"], "127.0.0.1"),
        ("2001:db8::1:2", [], [], "2001:db8::/64"),
    ],
)
def test_whose_address_counts(peer: str, forwarded: list[str], proxies: list[str], expected: str) -> None:
    import ipaddress

    assert door.caller(peer, forwarded, [ipaddress.ip_network(p) for p in proxies]) == expected


# -------------------------------------------------------------------- Origin, Host

ORIGINS = [
    None, "", "null", "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1", "http://127.0.0.1:{next}",
    "http://127.0.0.1:{port}.evil.example", "http://127.0.0.1:{port}/", "http://127.0.0.1:{port}@evil.example",
    "http://evil.example@127.0.0.1:{port}", "http://localhost:{port}", "http://[::1]:{port}", "HTTP://127.0.0.1:{port}",
    "http://127.0.0.1:{port} ,http://evil.example", "http://127.0.0.1:0{port}", "http://127.1:{port}", "http://2130706433:{port}",
    "http://0x7f000001:{port}", "http://127.0.0.1.:{port}", "ws://127.0.0.1:{port}", "//127.0.0.1:{port}", "127.0.0.1:{port}", "file://",
]  # fmt: skip


def test_24_origins_that_are_not_ours(world: World) -> None:
    edge, (machine, _) = world
    assert len(ORIGINS) == 24
    mine = cookie(edge, machine)
    for origin in ORIGINS:
        headers: dict[str, Any] = (
            {} if origin is None else {"Origin": origin.format(port=edge.port, next=edge.port + 1)}
        )
        with WebSocket(edge, f"/stream/{machine}/rfb", Cookie=mine, **headers) as ws:
            assert ws.status == 403, origin
        for what in ("enter", "leave"):
            answer = ask(edge, "POST", f"/stream/{machine}/{what}", a_ticket(machine).encode(), **headers)
            assert answer.status == 403, origin
    with WebSocket(edge, f"/stream/{machine}/rfb", Cookie=mine, Origin=[edge.origin, edge.origin]) as ws:
        assert ws.status == 403, "sent twice"
    with viewer(edge, machine, mine) as ws:
        assert ws.status == 101


def test_a_name_that_was_pointed_at_us_is_not_ours(world: World) -> None:
    edge, (machine, _) = world
    for host in (
        "evil.example",
        f"evil.example:{edge.port}",
        "127.0.0.1",
        f"localhost:{edge.port}",
        "",
        f"127.0.0.1:{edge.port}.x",
    ):
        for path in (f"/stream/{machine}/", f"/stream/{machine}/rfb", "/", "/static/x"):
            answer = ask(edge, "GET", path, Host=host)
            assert answer.status == 421, (host, path)
            assert "evil" not in answer.text
    own = f"127.0.0.1:{edge.port}"
    assert ask(edge, "GET", f"/stream/{machine}/", Host=[own, "evil.example"]).status in {400, 421}
    assert ask(edge, "GET", "/healthz", Host="evil.example").status == 421
    assert ask(edge, "GET", "/healthz", Host=f"localhost:{edge.port}").status == 200
    assert ask(edge, "GET", f"/stream/{machine}/", Host=own, X_Forwarded_Host="evil.example").status == 403


def test_nobody_else_may_read_across_origins(world: World) -> None:
    edge, (machine, _) = world
    for method in ("GET", "OPTIONS"):
        answer = ask(
            edge, method, f"/stream/{machine}/state", Origin="http://evil.example", Access_Control_Request_Method="POST"
        )
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


# -------------------------------------------------------------------- WebSocket's way in


def test_the_websocket_asks_for_itself(world: World) -> None:
    edge, (machine, other) = world
    edge.rows.revoked.add("AKIAREVOKED")
    foreign = cookie(edge, other)
    name = foreign.partition("=")[0]
    late = t.mint_pass(KEY, t.Pass(machine, "1", 0, "AKIATEST", "000000000000", "ab" * 16))
    stale = t.mint_pass(KEY, t.Pass(machine, "0", 2**32, "AKIATEST", "000000000000", "ab" * 16))
    revoked = t.mint_pass(KEY, t.Pass(machine, "1", 2**32, "AKIAREVOKED", "000000000000", "ab" * 16))
    forged = t.mint_pass(b"w" * 32, t.Pass(machine, "1", 2**32, "AKIATEST", "000000000000", "ab" * 16))
    for bad in (None, foreign, *(f"{name}={v}" for v in (late, stale, revoked, forged, "", "x", a_ticket(machine)))):
        headers: dict[str, Any] = {"Cookie": bad} if bad else {}
        with WebSocket(edge, f"/stream/{machine}/rfb", Origin=edge.origin, **headers) as ws:
            assert ws.status in {403, 410}, bad
    good = cookie(edge, machine)
    with WebSocket(edge, f"/stream/{machine}/rfb", Origin=edge.origin, Cookie=f"{good}; {name}=x") as ws:
        assert ws.status == 403, "two of ours: one was planted"
    # A ticket in the address is no way past the cookie.
    with WebSocket(edge, f"/stream/{machine}/rfb?ticket={a_ticket(machine)}", Origin=edge.origin) as ws:
        assert ws.status == 403
    assert ask(edge, "GET", f"/stream/{machine}/rfb", Origin=edge.origin, Cookie=good).status == 405


# -------------------------------------------------------------------- paths, headers, reflection


@pytest.mark.parametrize(
    "path",
    [
        "/", "/stream/", "/stream/{m}", "/stream/{m}/x", "/stream/{m}/rfb/", "/stream/{m}/websockify", "/stream/{M}/", "//stream/{m}/",
        "/stream/{m}/../{m}/", "/stream/%2e%2e/", "/stream//{m}/", "/static/", "/static/novnc/core/rfb.js", "/static/../server.py",
        "/static/{d}/", "/static/{d}/../stream.js", "/static/{d}/%2e%2e/stream.js", "/static/{d}//etc/passwd", "/static/{d}/novnc.sha256",
        "/static/{d}/stream.html", "/static/{d}/novnc/", "/static/{d}/novnc/core", "/static/{d}/stream.js/", "/static/{d}/stream.js%00",
        "//evil.example/%2f..", "/evil.example//", "/favicon.ico", "/robots.txt", "/console",
    ],
)  # fmt: skip
def test_there_is_nothing_else(world: World, path: str) -> None:
    edge, (machine, _) = world
    page = ask(edge, "GET", f"/stream/{machine}/?ticket={a_ticket(machine)}").text
    digest = page.partition("/static/")[2].partition("/")[0]
    answer = ask(edge, "GET", path.format(m=machine, M=machine.upper() + "A", d=digest))
    assert answer.status == 404
    assert answer.headers["Location"] is None


def test_every_answer_carries_the_same_armour(world: World) -> None:
    edge, (machine, _) = world
    page = ask(edge, "GET", f"/stream/{machine}/?ticket={a_ticket(machine)}")
    script = "/static/" + page.text.partition('src="/static/')[2].partition('"')[0]
    answers = [
        page,
        enter(edge, machine),
        enter(edge, machine, "x"),
        *(ask(edge, "GET", p) for p in ("/", script, "/healthz", "/metrics")),
    ]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        for part in (
            "default-src 'none'",
            "script-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ):
            assert part in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Server"] == "millstream"
        assert answer.headers["Cache-Control"] == (
            "no-store" if answer.body != ask(edge, "GET", script).body else "public, max-age=31536000, immutable"
        )
    for text in (page.text, ask(edge, "GET", "/").text):
        assert "http://" not in text.replace('xmlns="http://', "")
        assert "https://" not in text
        assert "<script>" not in text
        assert "style=" not in text


def test_nothing_of_the_address_comes_back(world: World) -> None:
    edge, (machine, _) = world
    marks = ("REFLECTED", "<script>REFLECTED</script>", "%3Cscript%3EREFLECTED")
    for mark in marks:
        for path in (
            f"/{mark}",
            f"/stream/{machine}/?ticket={mark}",
            f"/stream/{machine}/?message={mark}",
            f"/stream/{mark}/",
        ):
            assert (
                "REFLECTED"
                not in ask(
                    edge,
                    "GET",
                    path.replace("<", "%3c").replace(">", "%3e"),
                    Referer=mark,
                    X_Forwarded_Host="REFLECTED",
                ).text
            )
    name = edge.rows.add("<img src=x onerror=alert(1)>$name ${text}")
    text = ask(edge, "GET", f"/stream/{name}/?ticket={a_ticket(name)}").text
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;$name ${text}" in text


def test_what_is_not_http_gets_400_and_no_echo(world: World, caplog: pytest.LogCaptureFixture) -> None:
    edge, (machine, _) = world
    caplog.set_level(logging.DEBUG)
    secret = a_ticket(machine)
    for raw in (
        f"GET /stream/{machine}/?ticket={secret}\r\n\r\n",
        f"GET /stream/{machine}/?ticket={secret} HTTP/9.9\r\n\r\n",
        f"G{{T /?ticket={secret} HTTP/1.1\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nX: {secret}\0\r\n\r\n",
        f"GET /?{secret * 40} HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\n" + "".join(f"X-{n}: {secret}\r\n" for n in range(200)) + "\r\n",
        f"POST /{secret} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ):
        with socket.create_connection(("127.0.0.1", edge.port), timeout=5) as made:
            made.sendall(raw.encode("latin-1"))
            made.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: made.recv(65_536), b""))
        assert answer == b"" or b" 400 " in answer or b" 421 " in answer, (raw[:60], answer[:200])
        assert secret.encode() not in answer
    assert secret not in caplog.text


def test_tickets_and_passes_are_in_no_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    edge, (machine, _) = world
    caplog.set_level(logging.DEBUG)
    text = a_ticket(machine)
    ask(edge, "GET", f"/stream/{machine}/?ticket={text}")
    mine = cookie(edge, machine, text)
    with viewer(edge, machine, mine) as ws:
        assert ws.status == 101
        edge.rows.broken = True
        ask(edge, "GET", f"/stream/{machine}/?ticket={text}")
        edge.rows.broken = False
    wait_until(lambda: "stream.closed" in caplog.text)
    assert "edge.bug" in caplog.text
    told = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert text not in told
    assert mine.partition("=")[2] not in told


def test_a_store_in_trouble_is_500_without_details(world: World) -> None:
    edge, (machine, _) = world
    edge.rows.broken = True
    answer = ask(edge, "GET", f"/stream/{machine}/?ticket={a_ticket(machine)}")
    assert answer.status == 500
    for leak in ("Traceback", "OSError", "disk is gone", "millstream/"):
        assert leak not in answer.text.replace("/static/", "")


def test_big_and_endless_bodies_are_refused_unread(world: World) -> None:
    edge, (machine, _) = world
    for headers in ({"Content_Length": "1000000000"}, {"Transfer_Encoding": "chunked", "Content_Length": "0"}):
        sent = {"Origin": edge.origin, **headers}
        if "Transfer_Encoding" in sent:
            del sent["Content_Length"]
            answer = ask(
                edge, "POST", f"/stream/{machine}/enter", b"5\r\nhello\r\n0\r\n\r\n", **sent, Content_Length=[]
            )
        else:
            answer = ask(edge, "POST", f"/stream/{machine}/enter", b"x", **sent)
        assert answer.status == 403


# -------------------------------------------------------------------- TLS, prefix, operators


def test_https_behind_a_prefix(tmp_path: Path) -> None:
    for edge, (machine,) in edge_with(scheme="https", tls=certificate(tmp_path), prefix="/desks"):
        link = edge.link(machine)
        assert link.startswith(f"https://127.0.0.1:{edge.port}/desks/stream/")
        text = a_ticket(machine)
        for prefix in ("/desks", ""):  # a proxy leaves it on, or takes it off
            page = ask(edge, "GET", f"{prefix}/stream/{machine}/?ticket={text}")
            assert page.status == 200
            assert 'src="/desks/static/' in page.text
            script = page.text.partition('<script type="module" src="/desks')[2].partition('"')[0]
            assert ask(edge, "GET", prefix + script).status == 200
        answer = ask(edge, "POST", f"/desks/stream/{machine}/enter", text.encode(), Origin=edge.origin)
        parts = str(answer.headers["Set-Cookie"]).split("; ")
        assert parts[0].startswith("__Secure-millstream=")
        assert {"Secure", "HttpOnly", "SameSite=Strict", f"Path=/desks/stream/{machine}/"} == set(parts[1:])
        with WebSocket(edge, f"/desks/stream/{machine}/rfb", Origin=edge.origin, Cookie=parts[0]) as ws:
            assert ws.status == 101


@pytest.mark.parametrize(
    ("url", "origin", "prefix"),
    [
        ("https://x.example", "https://x.example", ""),
        ("https://x.example:443/", "https://x.example", ""),
        ("http://x.example:80/a/b/", "http://x.example", "/a/b"),
        ("https://X.example:8443", "https://x.example:8443", ""),
        ("http://[::1]:8401", "http://[::1]:8401", ""),
    ],
)
def test_the_public_address(url: str, origin: str, prefix: str) -> None:
    made = door.public_url(url)
    assert (made.origin, made.prefix) == (origin, prefix)


@pytest.mark.parametrize(
    "url", ["", "x.example", "ftp://x", "https://", "https://u@x", "https://x/?a", "https://x/#a", "https://ä"]
)
def test_no_public_address(url: str) -> None:
    with pytest.raises(ValueError, match="public address"):
        door.public_url(url)


def test_health_and_metrics(world: World) -> None:
    edge, (machine, _) = world
    assert ask(edge, "GET", "/healthz").status == 200
    edge.rows.healthy = Health(ok=False, code="engine.no-answer", why="silent for 5 s", next="millstream doctor")
    answer = ask(edge, "GET", "/healthz")
    assert (answer.status, "engine.no-answer" in answer.text) == (503, True)
    with viewer(edge, machine) as ws:
        assert ws.status == 101
        text = ask(edge, "GET", "/metrics").text
        assert 'millstream_edge_streams_total{engine="rfb"} 1' in text
        assert "millstream_edge_streaming 1" in text
        assert machine not in text
    assert ask(edge, "GET", "/metrics", X_Forwarded_For="9.9.9.9").status == 404
    assert ask(edge, "GET", "/metrics", Authorization="Bearer ").status == 200, "no token set: loopback decides"


def test_metrics_with_a_token_from_anywhere() -> None:
    for edge, _ in edge_with(metrics_token="s3cret"):
        assert "s3cret" not in repr(edge.settings)
        assert ask(edge, "GET", "/metrics", X_Forwarded_For="9.9.9.9", Authorization="Bearer s3cret").status == 200
        assert ask(edge, "GET", "/metrics", X_Forwarded_For="9.9.9.9", Authorization="Bearer wrong").status == 404
