"""Draw docs/lifecycle.md from the tables in `millstream.lifecycle.machine`; `--check` fails when it is not current."""

from __future__ import annotations

import sys
from pathlib import Path

from millstream.lifecycle.machine import DELETE, SETTLED, START, STATES, STOP, STREAM, TRANSITIONS, UPDATE, Limits

PAGE = Path(__file__).parents[1] / "docs/lifecycle.md"


def page() -> str:
    """The whole page, as Markdown."""
    limits = Limits()
    reached = [state for state in STATES if any(state in {old, new} for old, _, new in TRANSITIONS)]
    never = [state for state in STATES if state not in reached]
    lines = [
        "# The life of an image builder",
        "",
        "<!-- Made by scripts/draw_lifecycle.py from src/millstream/lifecycle/machine.py. Don't edit. -->",
        "",
        "Its owner writes what is *wanted*, by calls; the capacity driver says what is *observed*; `next_step` decides",
        "the one next step between the two; only the executor writes the *state*, which is what Describe shows.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        *(f"    {old or '[*]'} --> {new or '[*]'}: {cause}" for old, cause, new in TRANSITIONS),
        "```",
        "",
        "## Transitions",
        "",
        "| from | when | to |",
        "| --- | --- | --- |",
        *(f"| {old or '(none)'} | {cause} | {new or '(gone)'} |" for old, cause, new in TRANSITIONS),
        "",
        f"Settled, until somebody asks or a survey differs: {', '.join(sorted(SETTLED))}. In every other state the",
        "machine is looked at again and again.",
        "",
        "## What each call may find",
        "",
        "Each cell is the state after the call; a dash means that the call is refused and nothing changes.",
        "",
        "| state | StartImageBuilder | StopImageBuilder | DeleteImageBuilder | UpdateImageBuilder | streaming URL |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {state} | {START.get(state, '-')} | {STOP.get(state, '-')} | {DELETE.get(state, '-')} "
            f"| {state if state in UPDATE else '-'} | {'yes' if state in STREAM else '-'} |"
            for state in reached
        ),
        "",
        "## How long",
        "",
        "| limit | default | after it |",
        "| --- | --- | --- |",
        f"| a desktop is not ready | {limits.start_s:.0f} s after the engine's start | FAILED; looked at on |",
        f"| the agent is silent | {limits.silent_s:.0f} s | FAILED; RUNNING again when it answers |",
        f"| a create, start or stop is put off | {limits.attempts_s:.0f} s of waiting | FAILED |",
        f"| a machine stops by itself before its desktop is ready | {limits.restarts_max} times in a row | FAILED |",
        "| a delete is put off | no limit | what it waits for is in ImageBuilderErrors |",
        "",
        f"Between two tries: {limits.retry_s} s, twice as long each time, at most {limits.retry_s_max:.0f} s. Only",
        "time in which somebody looked counts: a stepped clock, a host that slept or a service that was down fails",
        "no machine.",
        "",
        "## States of the model that no image builder shows yet",
        "",
        f"{', '.join(never)}: their features are not built.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"{PAGE} is not what the tables say: run scripts/draw_lifecycle.py\n")
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
