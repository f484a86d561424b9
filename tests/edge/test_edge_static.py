"""The files behind the page: what is vendored is what was published, and both sides know the same words."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

from millstream.gateway import pages
from millstream.gateway.session import Close, EdgeSettings
from millstream.lifecycle.machine import STATES

STATIC = Path(pages.__file__).parent / "static"


def test_vendored_files_are_the_published_ones() -> None:
    table = {}
    for line in (STATIC / "novnc.sha256").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            digest, path = line.split("  ")
            table[path] = digest
    there = {p.relative_to(STATIC / "novnc").as_posix(): p for p in (STATIC / "novnc").rglob("*") if p.is_file()}
    assert set(table) == set(there)
    for path, digest in table.items():
        assert hashlib.sha256(there[path].read_bytes()).hexdigest() == digest, path
    assert {"LICENSE.txt", "docs/LICENSE.MPL-2.0", "vendor/pako/LICENSE"} <= set(table)


def test_the_page_knows_every_way_a_stream_ends() -> None:
    script = (STATIC / "stream.js").read_text("utf-8")
    table = script.partition("const CLOSED = {")[2].partition("};")[0]
    assert {int(code) for code in re.findall(r"^\s+(4\d{3}):", table, re.MULTILINE)} == set(Close)


class Parts(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_every_part_of_the_page_is_used_and_every_used_part_is_there() -> None:
    tags = Parts((STATIC / "stream.html").read_text("utf-8")).tags
    ids = [attrs["id"] for _, attrs in tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    script = (STATIC / "stream.js").read_text("utf-8") + (STATIC / "old.js").read_text("utf-8")
    asked = set(re.findall(r'\$\("([\w-]+)"\)', script))
    assert asked <= set(ids)
    # No dead button: each is named in the script, opens a panel, or sends keys.
    for tag, attrs in tags:
        if tag == "button":
            assert attrs.get("id") in asked or attrs.get("aria-controls") or attrs.get("data-keys"), attrs
            assert attrs.get("type") == "button"
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
        if tag == "script":
            assert attrs.get("src")
        for ref in ("aria-controls", "aria-labelledby", "for"):
            if attrs.get(ref):
                assert attrs[ref] in ids


def test_parts_bear_the_names_that_embedding_pages_know() -> None:
    ids = {attrs.get("id") for _, attrs in Parts((STATIC / "stream.html").read_text("utf-8")).tags}
    assert ids >= {
        "TOOLBAR", "FULLSCREEN_BUTTON", "END_SESSION_BUTTON", "CLIPBOARD_BUTTON", "COPY_LOCAL_BUTTON",
        "PASTE_REMOTE_BUTTON", "SETTINGS_BUTTON",
    }  # fmt: skip


def test_our_scripts_take_no_target_and_make_no_markup() -> None:
    for path in STATIC.glob("*.js"):
        text = path.read_text("utf-8")
        for bad in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://"):
            assert bad not in text, (path.name, bad)
    assert re.findall(r'\.get\("(\w+)"\)', (STATIC / "stream.js").read_text("utf-8")) == ["ticket"]


def test_the_table_of_files_is_fixed_and_named_by_its_content() -> None:
    table = pages.Pages("/x").files
    assert table == pages.Pages("").files
    for path, (body, content_type) in table.items():
        assert re.fullmatch(r"/static/[0-9a-f]{12}/[\w./-]+\.(js|css|svg)", path)
        assert body
        assert content_type in {"text/javascript", "text/css", "image/svg+xml"}


def test_settings_have_safe_defaults() -> None:
    settings = EdgeSettings()
    assert settings.host == "127.0.0.1"
    assert settings.hosts == settings.proxies == ()
    assert settings.watch_s <= 1


def test_a_page_has_words_for_every_state_without_a_picture() -> None:
    assert set(pages._DOING) == set(STATES) - {"RUNNING"}
