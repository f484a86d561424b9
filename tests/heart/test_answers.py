"""An answer is given again only while nobody has written: read-your-writes holds for whoever wrote."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from millstream.api import answers
from millstream.api.answers import Answers
from millstream.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from millstream.api.answers import Question


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path, synchronous="NORMAL")
    made.open()
    return made


def question(body: bytes = b"{}") -> Question:
    return ("json", "DescribeImageBuilders", "000000000000", "us-east-1", body)


def asked(held: Answers, body: bytes = b"{}", answer: bytes = b"answer") -> bytes | None:
    """Ask as the application does: what is not known is looked up and kept."""
    found = held.find(question(body))
    if found is None:
        held.keep(question(body), answer)
    return found


def test_the_same_question_is_answered_again_until_somebody_commits(store: Store) -> None:
    held = Answers(store, 10)
    assert asked(held) is None
    assert asked(held) == b"answer"
    store.write(lambda tx: tx.run("set_meta", key="a", value="1")).result()
    assert asked(held) is None
    assert asked(held) == b"answer"


def test_another_process_is_somebody_too(store: Store) -> None:
    held = Answers(store, 10)
    asked(held)
    script = (
        "import sys; from pathlib import Path; from millstream.store.store import Store; "
        "s = Store(Path(sys.argv[1])); s.write(lambda tx: tx.run('set_meta', key='b', value='2')).result(); s.close()"
    )
    subprocess.run([sys.executable, "-c", script, str(store.folder)], check=True)
    assert asked(held) is None


def test_what_is_committed_between_look_and_keep_is_not_missed(store: Store) -> None:
    held = Answers(store, 10)
    assert held.find(question()) is None
    store.write(lambda tx: tx.run("set_meta", key="c", value="3")).result()
    held.keep(question(), b"from before or after: nobody knows")
    assert held.find(question()) is None


def test_another_account_region_wire_or_operation_is_another_question(store: Store) -> None:
    held = Answers(store, 10)
    asked(held)
    own = question()
    for at, other in enumerate(("cbor", "DescribeImages", "111111111111", "eu-west-1")):
        assert held.find((*own[:at], other, *own[at + 1 :])) is None  # type: ignore[arg-type]


def test_what_is_kept_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Answers(store, 2)
    for number in range(5):
        asked(held, b"%d" % number)
    assert [asked(held, b"%d" % number) for number in range(3)] == [b"answer", b"answer", None]
    monkeypatch.setattr(answers, "BYTES_MAX", 100)
    store.write(lambda tx: tx.run("set_meta", key="d", value="4")).result()
    asked(held, b"a", b"x" * 90)
    asked(held, b"b", b"x" * 90)
    assert (asked(held, b"a"), asked(held, b"b")) == (b"x" * 90, None)
    assert Answers(store, 0).find(question()) is None


def test_large_questions_and_answers_are_not_kept(store: Store) -> None:
    held = Answers(store, 10)
    asked(held, b"q" * (answers.QUESTION_BYTES_MAX + 1))
    assert asked(held, b"q" * (answers.QUESTION_BYTES_MAX + 1)) is None
    asked(held, b"a", b"x" * (answers.ANSWER_BYTES_MAX + 1))
    assert asked(held, b"a") is None
