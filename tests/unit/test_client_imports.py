"""What importing the client library loads, measured in a fresh interpreter: modules, not milliseconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

import punchd.client

HEAVY = {"trio", "ssl", "asyncio", "pyroute2", "scapy", "hypothesis"}


def modules_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_package_alone_loads_next_to_nothing() -> None:
    added = modules_after("import punchd.client") - modules_after(
        "from __future__ import annotations\nimport importlib, typing"
    )
    assert added <= {"punchd", "punchd.client"}


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("from punchd.client import Connected, Relay, AttemptError, PortSet", set()),
        ("import punchd.client.blocking", set()),
        ("import punchd.client.trio_client", {"trio", "ssl"}),  # trio loads ssl itself
    ],
)
def test_no_flavour_loads_what_it_does_not_need(statement: str, allowed: set[str]) -> None:
    loaded = modules_after(statement)
    assert loaded & HEAVY <= allowed
    privileged = ("punchd.kernel", "punchd.attempt", "punchd.nat", "punchd.control.server", "punchd.cli.")
    assert not [name for name in loaded if name.startswith(privileged)]


def test_every_public_name_is_found_and_no_other() -> None:
    for name in punchd.client.__all__:
        assert getattr(punchd.client, name) is not None
    assert set(dir(punchd.client)) == set(punchd.client.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Deamon'"):
        _ = punchd.client.Deamon
