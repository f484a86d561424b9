"""The page in Chromium with a real display: picture, keys, clipboard, size, drops, endings."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.edge.edge_world import ACCOUNT, Desktop, EdgeServer, Rows, Sockets, a_ticket, new_id, wait_until

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or ""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM or not shutil.which("Xtigervnc"), reason="needs chromium and Xtigervnc"),
]
SHOTS = os.environ.get("MILLSTREAM_SCREENSHOTS")  # a folder: pictures of every test's last moment

# Distinct colours, and a digest of the picture, from a small copy of the canvas.
LOOK = """() => {
  const canvas = document.querySelector("#screen canvas");
  if (!canvas || !canvas.width) return {colours: 0, digest: ""};
  const small = document.createElement("canvas");
  small.width = 320; small.height = 200;
  const context = small.getContext("2d", {willReadFrequently: true});
  context.drawImage(canvas, 0, 0, 320, 200);
  const data = context.getImageData(0, 0, 320, 200).data;
  const seen = new Set(); let digest = 0;
  for (let at = 0; at < data.length; at += 4) {
    const colour = data[at] << 16 | data[at + 1] << 8 | data[at + 2];
    seen.add(colour); digest = (Math.imul(digest, 31) + colour) | 0;
  }
  return {colours: seen.size, digest: String(digest)};
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as tool:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--headless=new", *flags])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def desktop() -> Iterator[Desktop]:
    with Desktop(title="<img src=x onerror=alert(1)>") as made:
        yield made


@pytest.fixture
def edge(desktop: Desktop) -> Iterator[EdgeServer]:
    with EdgeServer(Rows(), Sockets()) as made:
        yield made


@pytest.fixture
def machine(edge: EdgeServer, desktop: Desktop) -> str:
    made = edge.rows.add("cad-2")
    edge.sockets.paths[made] = desktop.socket
    return made


class Page:
    """A tab of a browser of its own."""

    def __init__(self, browser: Any, edge: EdgeServer, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if "Content Security" in said.text else None
        )
        self.edge = edge

    def open(self, machine: str, text: str | None = None) -> None:
        self.page.goto(self.edge.link(machine, text))

    def shown(self, limit_s: float = 30) -> None:
        self.page.wait_for_selector("#CLIPBOARD_BUTTON:not([disabled])", timeout=limit_s * 1000)

    def look(self) -> dict[str, Any]:
        found: dict[str, Any] = self.page.evaluate(LOOK)
        return found

    def click_terminal(self) -> None:
        box = self.page.locator("#screen canvas").bounding_box()
        self.page.mouse.click(box["x"] + 620, box["y"] + 300)

    def type(self, text: str) -> None:
        self.page.keyboard.type(text, delay=5)

    def says(self, text: str, limit_s: float = 30) -> None:
        self.page.wait_for_function("t => document.body.innerText.includes(t)", arg=text, timeout=limit_s * 1000)


@pytest.fixture
def tab(chromium: Any, edge: EdgeServer, request: pytest.FixtureRequest) -> Iterator[Page]:
    made = Page(chromium, edge)
    yield made
    if SHOTS:
        made.page.screenshot(path=f"{SHOTS}/{request.node.name}.png")
    made.context.close()
    assert made.complaints == []


def typed_file(tab: Page, desktop: Desktop, word: str) -> None:
    """The whole path: keys through page, edge and display into a program, whose deed is on the disk."""
    path = desktop.folder / word
    tab.click_terminal()
    tab.type(f"echo ok > {word}\n")
    wait_until(path.exists, 5, f"the command that writes {word}")
    wait_until(lambda: path.read_text("utf-8") == "ok\n", 2)


def test_a_link_shows_a_desktop_and_a_typed_command_runs(tab: Page, machine: str, desktop: Desktop) -> None:
    began = time.monotonic()
    tab.open(machine)
    wait_until(lambda: tab.look()["colours"] > 3, 5, "a picture with more than three colours")
    assert time.monotonic() - began < 5
    tab.shown()
    assert tab.page.url == f"{tab.edge.url}/stream/{machine}/", "the ticket is gone from the address bar"
    tab.click_terminal()
    before = tab.look()["digest"]
    tab.type("#")
    wait_until(lambda: tab.look()["digest"] != before, 1, "the key to change the picture")
    tab.page.keyboard.press("Backspace")
    typed_file(tab, desktop, "typed")
    # What the machine calls itself is nowhere markup.
    assert tab.page.locator("img[src=x]").count() == 0
    assert tab.page.title() == "cad-2"
    # A reload needs no ticket.
    tab.page.reload()
    tab.shown()
    typed_file(tab, desktop, "reloaded")


def test_the_screen_follows_the_window(tab: Page, machine: str, desktop: Desktop) -> None:
    tab.open(machine)
    tab.shown()

    def same() -> bool:
        stage = tab.page.evaluate(
            "() => { const r = document.getElementById('stage').getBoundingClientRect(); return [r.width, r.height]; }"
        )
        return f"dimensions:    {int(stage[0])}x{int(stage[1])} pixels" in desktop.x("xdpyinfo").decode()

    wait_until(same, 5, "the display to take the window's size")
    tab.page.set_viewport_size({"width": 900, "height": 620})
    wait_until(same, 5, "the display to follow")
    # At 320 pixels all buttons are there and nothing is cut off.
    tab.page.set_viewport_size({"width": 320, "height": 560})
    wait_until(same, 5)
    for name in (
        "CLIPBOARD_BUTTON",
        "KEYS_BUTTON",
        "SETTINGS_BUTTON",
        "FULLSCREEN_BUTTON",
        "QUALITY_BUTTON",
        "END_SESSION_BUTTON",
    ):
        box = tab.page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= 320, name
        assert box["height"] >= 24, name
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 320
    tab.page.set_viewport_size({"width": 1280, "height": 800})
    wait_until(same, 5)


def test_clipboard_by_hand_both_ways(tab: Page, machine: str, desktop: Desktop) -> None:
    tab.open(machine)
    tab.shown()
    tab.page.click("#CLIPBOARD_BUTTON")
    tab.page.fill("#to-desktop", "äß€ to\nthe desktop")
    tab.page.click("#PASTE_REMOTE_BUTTON")
    tab.says("Sent.")
    wait_until(
        lambda: (
            desktop.x("xclip", "-o", "-selection", "clipboard", "-t", "UTF8_STRING").decode() == "äß€ to\nthe desktop"
        ),
        5,
    )
    desktop.put_clipboard("äß€ from the desktop")
    wait_until(lambda: tab.page.input_value("#from-desktop") == "äß€ from the desktop")
    tab.page.fill("#to-desktop", "x" * 300_000)
    tab.page.click("#PASTE_REMOTE_BUTTON")
    tab.says("300.0 kB; 262.1 kB allowed, so nothing was sent.")


def test_clipboard_by_itself_both_ways(chromium: Any, edge: EdgeServer, machine: str, desktop: Desktop) -> None:
    tab = Page(chromium, edge, permissions=["clipboard-read", "clipboard-write"])
    tab.open(machine)
    tab.shown()
    tab.page.click("#CLIPBOARD_BUTTON")
    tab.page.click("#seamless-on")
    tab.says("The clipboard is shared while this page has the focus.")
    tab.page.evaluate("navigator.clipboard.writeText('äß€ outside')")
    tab.click_terminal()
    wait_until(
        lambda: desktop.x("xclip", "-o", "-selection", "clipboard", "-t", "UTF8_STRING").decode() == "äß€ outside", 5
    )
    desktop.put_clipboard("äß€ inside")
    wait_until(lambda: tab.page.evaluate("navigator.clipboard.readText()") == "äß€ inside")
    tab.context.close()
    assert tab.complaints == []


def test_type_this_text_and_keys(tab: Page, machine: str, desktop: Desktop) -> None:
    tab.open(machine)
    tab.shown()
    tab.click_terminal()
    tab.page.click("#KEYS_BUTTON")
    tab.page.fill("#type-text", 'printf "äß€ ~|{}" > spelled\n')
    tab.page.click("#type-now")
    tab.says("Typed 28.")
    wait_until((desktop.folder / "spelled").exists, 5)
    wait_until(lambda: (desktop.folder / "spelled").read_text("utf-8") == "äß€ ~|{}", 2)
    tab.page.keyboard.press("Escape")
    assert not tab.page.is_visible("#keys")


def test_the_chord_leaves_the_canvas(tab: Page, machine: str, desktop: Desktop) -> None:
    tab.open(machine)
    tab.shown()
    tab.click_terminal()
    assert tab.page.evaluate("document.activeElement.tagName") == "CANVAS"
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.tagName") == "CANVAS", "Tab belongs to the desktop"
    tab.page.keyboard.press("Control+Alt+Shift")
    wait_until(lambda: tab.page.evaluate("document.activeElement.id") == "CLIPBOARD_BUTTON", 2)
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.id") == "KEYS_BUTTON"
    tab.page.keyboard.press("Enter")
    assert tab.page.is_visible("#keys")
    tab.page.keyboard.press("Escape")
    assert tab.page.evaluate("document.activeElement.id") == "KEYS_BUTTON"
    typed_file(tab, desktop, "after_chord")  # no key stayed down


def test_edge_killed_and_started_again(chromium: Any, desktop: Desktop) -> None:
    rows, sockets = Rows(), Sockets()
    machine = rows.add("cad-2")
    sockets.paths[machine] = desktop.socket
    first = EdgeServer(rows, sockets)
    with first:
        tab = Page(chromium, first)
        tab.open(machine)
        tab.shown()
    tab.says("Reconnecting…")
    assert tab.page.is_visible("#still"), "the last picture stays"
    if SHOTS:
        tab.page.screenshot(path=f"{SHOTS}/reconnecting.png")
    with EdgeServer(rows, sockets, port=first.port):
        began = time.monotonic()
        tab.shown()
        typed_file(tab, desktop, "again")
        assert time.monotonic() - began < 30
        tab.context.close()
    assert tab.complaints == []


def test_takeover_is_told_and_can_be_taken_back(chromium: Any, tab: Page, machine: str, edge: EdgeServer) -> None:
    tab.open(machine)
    tab.shown()
    other = Page(chromium, edge)
    other.open(machine)
    other.shown()
    tab.says("Opened somewhere else")
    if SHOTS:
        tab.page.screenshot(path=f"{SHOTS}/taken_over.png")
    tab.page.wait_for_timeout(1500)  # it must not fight for the desktop by itself
    assert other.page.is_enabled("#CLIPBOARD_BUTTON")
    tab.page.click("text=Take it back")
    tab.shown()
    other.says("Opened somewhere else")
    other.context.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": "STOPPING", "running": False}, "cad-2 was stopped"),
        ({"state": "DELETING", "running": False}, "cad-2 was deleted"),
        ({"account": "1" + ACCOUNT[1:]}, "Access has ended"),
    ],
)
def test_an_ended_session_says_so_and_rests(tab: Page, machine: str, change: dict[str, object], said: str) -> None:
    tab.open(machine)
    tab.shown()
    tab.edge.rows.change(machine, **change)
    tab.says(said)
    opened: list[str] = []
    tab.page.on("websocket", lambda socket: opened.append(socket.url))
    tab.page.wait_for_timeout(1500)
    assert opened == [], "no retry where it is pointless"


def test_a_lost_machine_is_waited_for(tab: Page, edge: EdgeServer) -> None:
    with Desktop(programs=False) as own:
        mine = edge.rows.add("gis-1")
        edge.sockets.paths[mine] = own.socket
        tab.open(mine)
        tab.shown()
        own.kill()
        tab.says("Reconnecting…")
        tab.says("The desktop doesn't answer.")
    with Desktop(programs=False) as again:
        edge.sockets.paths[mine] = again.socket
        tab.shown()


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("expired", "This link worked until"),
        ("forged", "This link isn't whole"),
        ("foreign", "This link isn't for this desktop"),
        ("used", "This link has been used"),
        ("none", "This desktop opens with a link"),
        ("gone", "This desktop is gone"),
        ("stopped", "cad-2 is stopped"),
        ("simulated", "cad-2 has no display"),
    ],
)
def test_pages_that_say_why(tab: Page, machine: str, link: str, said: str) -> None:
    rows = tab.edge.rows
    text = a_ticket(machine)
    if link == "expired":
        text = a_ticket(machine, -60)
    elif link == "forged":
        text = text[:-9] + "AAAAAAAAA"
    elif link == "foreign":
        text = a_ticket(new_id())
    elif link == "used":
        rows.use_ticket_of(text, machine)
    elif link == "none":
        tab.page.goto(f"{tab.edge.url}/stream/{machine}/")
    elif link == "gone":
        del rows.targets[machine]
    elif link == "stopped":
        rows.change(machine, state="STOPPED", running=False)
    elif link == "simulated":
        rows.change(machine, display=False)
    if link != "none":
        tab.open(machine, text)
    tab.says(said)
    assert "UTC" not in tab.page.inner_text("body"), "times are the reader's"


def test_a_starting_builder_opens_by_itself(tab: Page, machine: str) -> None:
    tab.edge.rows.change(machine, state="PENDING", running=False, coming=True)
    tab.open(machine)
    tab.says("cad-2 is starting")
    tab.edge.rows.change(machine, state="RUNNING", running=True)
    tab.shown()


def test_end_leaves_and_forgets_the_way_in(tab: Page, machine: str) -> None:
    tab.open(machine)
    tab.shown()
    tab.page.click("#END_SESSION_BUTTON")
    tab.page.click("#end-now")
    tab.says("You have left")
    tab.page.goto(f"{tab.edge.url}/stream/{machine}/")
    tab.says("This desktop opens with a link")


def test_dark_and_forced_colours(chromium: Any, edge: EdgeServer, machine: str) -> None:
    for n, options in enumerate(({"color_scheme": "dark"}, {"forced_colors": "active"})):
        tab = Page(chromium, edge, **options)
        tab.open(machine)
        tab.shown()
        tab.page.click("#KEYS_BUTTON")
        contrast = tab.page.evaluate("""() => {
          const lum = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map((x) => { x /= 255; return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; }); return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
          const worst = [];
          for (const e of document.querySelectorAll("#keys p, #keys label, #keys button, #name, .tools button:not(:disabled)")) {
            let g = e; while (g && getComputedStyle(g).backgroundColor.match(/, 0\\)$/)) g = g.parentElement;
            const s = getComputedStyle(e), back = getComputedStyle(g || document.body).backgroundColor;
            if (!s.color.startsWith("rgb") || !back.startsWith("rgb")) continue;
            const [a, b] = [lum(s.color), lum(back)].sort((x, y) => y - x);
            worst.push((a + .05) / (b + .05));
          }
          return Math.min(...worst);
        }""")
        assert contrast >= 4.5
        if SHOTS:
            tab.page.screenshot(path=f"{SHOTS}/colours{n}.png")
        tab.context.close()
        assert tab.complaints == []
