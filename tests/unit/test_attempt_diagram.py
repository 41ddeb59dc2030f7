"""The committed diagram is what the table says."""

from __future__ import annotations

from punchd.attempt.transitions import TRANSITIONS, State
from tests.attempt_diagram import EVERYWHERE, TARGET, diagram, page


def test_the_committed_diagram_is_current() -> None:
    assert TARGET.read_text(encoding="utf-8") == page(), "run: .venv/bin/python -m tests.attempt_diagram"


def test_every_state_and_every_arrow_is_drawn() -> None:
    drawn = diagram()
    for state in State:
        assert f" {state.name}" in drawn
    for (state, cue), (_, after) in TRANSITIONS.items():
        for target in after:
            arrow = f"{state.name} --> {target.name}"
            assert cue in EVERYWHERE or any(
                line.strip().startswith(arrow) and cue.name.lower().replace("_", " ") in line
                for line in drawn.splitlines()
            )


def test_what_is_drawn_once_is_the_same_in_every_state() -> None:
    for cue in EVERYWHERE:
        rows = {TRANSITIONS[key] for key in TRANSITIONS if key[1] is cue}
        assert len(rows) == 1
        assert rows.pop()[1] == {State.ENDED}
