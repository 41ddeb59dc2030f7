"""The laboratory from a shell: `python -m tests.natlab KIND_A KIND_B` opens a shell in host A.

    --list           the kinds of NAT, with what they are
    --prove [KIND…]  probes the kinds, or all, and prints what was proven
    --clean          removes what dead laboratories left, and says what

The shell has STUN (two endpoints), STUN6, PEER (host B's public address), NETNS_A and NETNS_B in its environment;
`ip netns exec $NETNS_B COMMAND` runs something on the other side.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from .coturn import CoturnError
from .kinds import KINDS, kind
from .laboratory import Laboratory, LaboratoryError
from .leftovers import sweep
from .measured_path import ProbeError
from .model import Side, Site
from .probe import probe
from .proof import expected


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.natlab", description="A laboratory of NATs.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="two kinds of NAT, for host A and host B")
    parser.add_argument("--list", action="store_true", help="list the kinds")
    parser.add_argument("--prove", action="store_true", help="probe the kinds (all by default)")
    parser.add_argument("--clean", action="store_true", help="remove what dead laboratories left")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        for name in options.kinds:
            kind(name)
        if options.list:
            return _list()
        if os.geteuid():
            raise PermissionError("network namespaces need root: run it with sudo")
        if options.clean:
            return _clean()
        if options.prove:
            return _prove(options.kinds or list(KINDS))
        return _shell(options.kinds)
    except (ValueError, OSError, LaboratoryError, CoturnError, ProbeError) as error:
        print(f"natlab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _terminate(number: int, _frame: FrameType | None) -> None:
    """Ends by an exception, so that the laboratory is taken down."""
    raise SystemExit(128 + number)


def _list() -> int:
    width = max(map(len, KINDS))
    for name, nat in KINDS.items():
        print(f"{name:{width}}  {nat.summary}")
    return 0


def _clean() -> int:
    removed = sweep()
    print(*removed, f"{len(removed)} namespaces of dead laboratories removed", sep="\n")
    return 0


def _prove(names: Sequence[str]) -> int:
    """Probes each kind; status 1 if one is not what it says."""
    bystanders = [Site(f"bystander-{side.value}", side=side) for side in Side]
    faults = 0
    with Laboratory([*(Site(name, kind(name)) for name in names), *bystanders], stun=False) as lab:
        for name in names:
            far = Side.RIGHT if lab.site(name).side is Side.LEFT else Side.LEFT
            proof = probe(lab, name)
            differences = proof.differences(expected(kind(name), far_provider=f"isp-{far.value}"))
            faults += bool(differences)
            print(f"{name}: {kind(name).summary}", *proof.lines(), sep="\n    ")
            print(*(f"    NOT AS DESCRIBED: {line}" for line in differences), sep="\n", end="\n" if differences else "")
    return 1 if faults else 0


def _shell(names: Sequence[str]) -> int:
    if len(names) != 2:
        raise ValueError("expected two kinds of NAT, or --list to see them")
    left, right = names
    with Laboratory([Site("a", kind(left)), Site("b", kind(right))]) as lab:
        here, there = lab.site("a").host, lab.site("b").host
        print(lab.topology(), flush=True)
        environment = {
            **os.environ,
            "STUN": " ".join(lab.stun),
            "STUN6": " ".join(lab.stun6),
            "PEER": there.public_ipv4,
            "NETNS_A": here.name,
            "NETNS_B": there.name,
            "PS1": f"natlab a ({left})# ",
        }
        shell = os.environ.get("SHELL") or "sh"
        # bash would overwrite PS1 from the user's files.
        plain = ["--norc", "--noprofile"] if Path(shell).name == "bash" else []
        # Ctrl-C is the shell's business while it runs. A handler, since SIG_IGN would be inherited.
        before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
        try:
            status = here.popen([shell, *plain], env=environment).wait()
        finally:
            signal.signal(signal.SIGINT, before)
        return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
