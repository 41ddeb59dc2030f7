"""The committed diagrams are what the tables say."""

from __future__ import annotations

from tests.broker_diagram import MACHINES, TARGET, diagram, page


def test_the_committed_diagrams_are_current() -> None:
    assert TARGET.read_text(encoding="utf-8") == page(), "run: .venv/bin/python -m tests.broker_diagram"


def test_every_row_of_every_table_is_drawn() -> None:
    for machine in MACHINES:
        drawn = diagram(machine).splitlines()
        for (state, cue), after in machine.table.items():
            arrow = f"    {state.name} --> {after.name}: "
            assert cue in machine.everywhere or any(one.startswith(arrow) and cue.value in one for one in drawn)


def test_what_is_drawn_once_leads_from_every_state_to_the_last() -> None:
    for machine in MACHINES:
        states = {state for state, _ in machine.table}
        assert machine.last not in states
        for cue in machine.everywhere:
            rows = {state: after for (state, found), after in machine.table.items() if found is cue}
            assert rows == dict.fromkeys(states, machine.last)
