"""Tickets and passes: what is minted opens, and nothing else does."""

from __future__ import annotations

import base64
import dataclasses
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.model import ticket as t

KEY, OTHER = b"k" * 32, b"o" * 32
MACHINE, STRANGER = "0123456789abcdef" * 2, "f" * 32
hex32 = st.text("0123456789abcdef", min_size=32, max_size=32)
field = st.text(string.ascii_letters + string.digits + string.punctuation, max_size=128)
ALPHABET = string.ascii_letters + string.digits + "-_"


def tickets(machine: st.SearchStrategy[str] = hex32) -> st.SearchStrategy[t.Ticket]:
    return st.builds(
        t.Ticket,
        machine,
        st.integers(1, 2**40),
        field,
        field,
        hex32,
        st.just(t.STREAM),
        st.sampled_from([t.OWNER, t.VIEWER]),
    )


passes = st.builds(t.Pass, hex32, field, st.integers(0, 2**40), field, field, hex32, field)
A_TICKET = t.Ticket(MACHINE, 1000, "AKIA", "000000000000", "ab" * 16)


@given(tickets())
def test_what_is_minted_opens_equal(ticket: t.Ticket) -> None:
    text = t.mint(KEY, ticket)
    assert t.open_ticket(text, [KEY], now=ticket.expires_at - 1, machine_id=ticket.machine_id) == ticket
    assert len(text) <= t.TEXT_BYTES_MAX
    assert set(text) <= set(ALPHABET)


@given(passes)
def test_a_pass_opens_equal(granted: t.Pass) -> None:
    text = t.mint_pass(KEY, granted)
    assert t.open_pass(text, [KEY], now=granted.issued_at, machine_id=granted.machine_id) == granted


@given(tickets(st.just(MACHINE)), st.data())
def test_any_one_letter_changed_is_forged(ticket: t.Ticket, data: st.DataObject) -> None:
    text = t.mint(KEY, ticket)
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from([c for c in ALPHABET if c != text[at]]))
    with pytest.raises(t.Forged):  # the spare bits of the last letter, too
        t.open_ticket(text[:at] + letter + text[at + 1 :], [KEY], now=0, machine_id=MACHINE)


@given(
    st.text(max_size=400) | st.binary(max_size=400).map(lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("="))
)
def test_anything_else_is_forged(text: str) -> None:
    with pytest.raises(t.Forged):
        t.open_ticket(text, [KEY, OTHER], now=0, machine_id=MACHINE)
    with pytest.raises(t.Forged):
        t.open_pass(text, [KEY, OTHER], now=0, machine_id=MACHINE)


@pytest.mark.parametrize("dress", ["{}=", "{}==", " {}", "{}\n", "{}A", "{}.", "%2B{}", "{}" * 2])
def test_another_dress_is_forged(dress: str) -> None:
    text = t.mint(KEY, A_TICKET)
    with pytest.raises(t.Forged):
        t.open_ticket(dress.format(text, text), [KEY], now=0, machine_id=MACHINE)


def test_the_other_alphabet_is_forged() -> None:
    for n in range(64):  # some of these hold - or _
        text = t.mint(KEY, dataclasses.replace(A_TICKET, nonce=f"{n:032x}"))
        plain = text.replace("-", "+").replace("_", "/")
        if plain != text:
            with pytest.raises(t.Forged):
                t.open_ticket(plain, [KEY], now=0, machine_id=MACHINE)


def test_every_byte_cut_off_is_forged() -> None:
    text = t.mint(KEY, A_TICKET)
    for end in range(len(text)):
        with pytest.raises(t.Forged):
            t.open_ticket(text[:end], [KEY], now=0, machine_id=MACHINE)


def test_two_keys_while_rotating_one_after() -> None:
    old, new = t.mint(OTHER, A_TICKET), t.mint(KEY, A_TICKET)
    for text in (old, new):
        assert t.open_ticket(text, [KEY, OTHER], now=0, machine_id=MACHINE) == A_TICKET
    with pytest.raises(t.Forged):
        t.open_ticket(old, [KEY], now=0, machine_id=MACHINE)
    with pytest.raises(t.Forged):
        t.open_ticket(new, [], now=0, machine_id=MACHINE)


def test_foreign_before_expired_and_expired_to_the_second() -> None:
    text = t.mint(KEY, A_TICKET)
    with pytest.raises(t.Foreign):
        t.open_ticket(text, [KEY], now=2000, machine_id=STRANGER)
    with pytest.raises(t.Foreign):
        t.open_ticket(text, [KEY], now=0, machine_id=MACHINE, purpose="console")
    assert t.open_ticket(text, [KEY], now=999.9, machine_id=MACHINE)
    with pytest.raises(t.Expired) as caught:
        t.open_ticket(text, [KEY], now=1000, machine_id=MACHINE)
    assert caught.value.at == 1000


def test_a_ticket_is_no_pass_and_a_pass_no_ticket() -> None:
    ticket = t.mint(KEY, A_TICKET)
    granted = t.mint_pass(KEY, t.Pass(MACHINE, "1", 0, "AKIA", "0", "ab" * 16))
    with pytest.raises(t.Forged):
        t.open_pass(ticket, [KEY], now=0, machine_id=MACHINE)
    with pytest.raises(t.Forged):
        t.open_ticket(granted, [KEY], now=0, machine_id=MACHINE)
    with pytest.raises(t.Foreign):
        t.open_pass(granted, [KEY], now=0, machine_id=STRANGER)
    with pytest.raises(t.Expired):
        t.open_pass(granted, [KEY], now=t.PASS_LIFE_S_MAX, machine_id=MACHINE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"machine_id": "demo"},
        {"nonce": "ab"},
        {"nonce": "AB" * 16},
        {"account": "ä"},
        {"key_id": "x" * 129},
        {"role": "a b"},
    ],
)
def test_what_cant_be_written_is_our_mistake(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="hex digits"):
        t.mint(KEY, dataclasses.replace(A_TICKET, **wrong))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32 bytes"):
        t.mint(b"short", A_TICKET)
