"""docs/attempt-machine.md, drawn from the attempt machine's table: `python -m tests.attempt_diagram` writes it.

A test compares the committed file with what this would write.
"""

from __future__ import annotations

from pathlib import Path

from punchd.attempt.transitions import TRANSITIONS, Cue, State

TARGET = Path(__file__).parents[1] / "docs" / "attempt-machine.md"
# Rows that every state has; drawn once, or the diagram would be a knot.
EVERYWHERE = (Cue.ABORT, Cue.ATTEMPT_OVER, Cue.CANCELLED, Cue.VANISHED, Cue.SHUT_DOWN)
_HEAD = """\
# The attempt machine

Written by `python -m tests.attempt_diagram` from the table in `punchd/attempt/transitions.py`, which also says what is
known in each state. Do not edit. An arrow names what happens; where one cue leads to several states, the machine's
method decides (another technique is left or not, the offered technique is known or not).
"""


def diagram() -> str:
    """The table as a mermaid state diagram."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, cue), (_, after) in TRANSITIONS.items():
        if cue in EVERYWHERE:
            continue
        for target in sorted(after, key=lambda one: one.value):
            arrows.setdefault((state, target), []).append(_word(cue))
    lines = ["stateDiagram-v2", "    [*] --> NEW"]
    lines += [f"    {one.name} --> {other.name}: {', '.join(words)}" for (one, other), words in arrows.items()]
    lines += ["    ENDED --> [*]"]
    return "\n".join(lines)


def page() -> str:
    """The whole file."""
    rows = [
        f"| {state.name} | {_word(cue)} | `{method}` | {', '.join(one.name for one in sorted(after, key=_value))} |"
        for (state, cue), (method, after) in TRANSITIONS.items()
        if cue not in EVERYWHERE
    ]
    ends = [f"| {_word(cue)} | `{TRANSITIONS[State.WAITING, cue][0]}` |" for cue in EVERYWHERE]
    return "\n".join(
        (
            _HEAD,
            "```mermaid",
            diagram(),
            "```",
            "",
            "| in | on | method | leads to |",
            "|---|---|---|---|",
            *rows,
            "",
            "From every state but ENDED, and with nothing but ENDED to lead to (in NEW no time passes yet):",
            "",
            "| on | method |",
            "|---|---|",
            *ends,
            "",
        )
    )


def _word(cue: Cue) -> str:
    return cue.name.lower().replace("_", " ")


def _value(state: State) -> int:
    return int(state.value)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
