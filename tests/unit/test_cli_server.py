"""What the servers' commands share."""

from __future__ import annotations

import ast
import gc
from pathlib import Path

import pytest

from punchd.cli import broker, rendezvous, server


def test_the_garbage_collector_leaves_what_was_imported_alone_and_looks_at_old_things_seldom() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        server.settle_memory()
        assert gc.get_freeze_count() > frozen + 10_000
        assert all(now >= then for now, then in zip(gc.get_threshold(), before, strict=True))
        assert gc.get_threshold() != before
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


@pytest.mark.parametrize("command", [broker, rendezvous])
def test_both_servers_settle_their_memory_before_they_serve(command: object) -> None:
    source = Path(str(command.__file__)).read_text()  # type: ignore[attr-defined]
    [serve] = [
        node for node in ast.parse(source).body if isinstance(node, ast.AsyncFunctionDef) and node.name == "_serve"
    ]
    calls = [ast.unparse(node.func) for node in ast.walk(serve) if isinstance(node, ast.Call)]
    assert "server.settle_memory" in calls
