"""docs/broker-machine.md, drawn from the session broker's tables: `python -m tests.broker_diagram` writes it.

A test compares the committed file with what this would write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from punchd.broker import connections, session, streams
from punchd.broker.server_messages import State

TARGET = Path(__file__).parents[1] / "docs" / "broker-machine.md"


@dataclass(frozen=True)
class Machine:
    """A table of (state, cue) → state.

    Attributes:
        everywhere: cues that lead from every state to the last one; said once, or the diagram would be a knot.
        words: what else is to be known.
    """

    title: str
    table: Mapping[Any, Enum]
    first: Enum
    last: Enum
    everywhere: tuple[Enum, ...]
    words: str


MACHINES = (
    Machine(
        "A session",
        session.TRANSITIONS,
        State.WAITING,
        State.CLOSED,
        (session.Cue.DELETED, session.Cue.EXPIRED, session.Cue.FAILED),
        "It never goes back. The table: `punchd/broker/session.py`.",
    ),
    Machine(
        "A stream",
        streams.TRANSITIONS,
        streams.Phase.EMPTY,
        streams.Phase.CLOSED,
        (streams.Cue.ENDED,),
        "EMPTY and ALONE are told as WAITING. Whenever a peer registers and two are there then, a round begins. The\n"
        "table: `punchd/broker/streams.py`; who gets a slot, `punchd/broker/registration.py` says.",
    ),
    Machine(
        "A connection",
        connections.TRANSITIONS,
        connections.Phase.UNREGISTERED,
        connections.Phase.OVER,
        (connections.Cue.DEAD, connections.Cue.LEAVE),
        "Admins begin in LIVE. The table: `punchd/broker/connections.py`.",
    ),
)
_HEAD = """\
# The session broker's machines

Written by `python -m tests.broker_diagram` from the tables in `punchd/broker/`. Do not edit. What is not drawn changes
nothing, or is refused.
"""


def diagram(machine: Machine) -> str:
    """One table as a mermaid state diagram."""
    arrows: dict[tuple[Enum, Enum], list[str]] = {}
    for (state, cue), after in machine.table.items():
        if cue not in machine.everywhere:
            arrows.setdefault((state, after), []).append(cue.value)
    lines = ["stateDiagram-v2", f"    [*] --> {machine.first.name}"]
    lines += [f"    {one.name} --> {other.name}: {', '.join(words)}" for (one, other), words in arrows.items()]
    return "\n".join([*lines, f"    {machine.last.name} --> [*]"])


def page() -> str:
    """The whole file."""
    parts = [_HEAD]
    for machine in MACHINES:
        ends = "; ".join(cue.value for cue in machine.everywhere)
        last = machine.last.name
        parts += [f"## {machine.title}", "", machine.words, "", "```mermaid", diagram(machine), "```", ""]
        parts += [f"From every state but {last} to {last}: {ends}.", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
