"""Carries a plan out: namespaces, cables, rules, programs; and takes it all down again.

Set-up is a handful of steps, each for all nodes at once, because processes cost more than kernel work: one
`ip -batch` makes all namespaces, one makes all cables, then each node gets one `ip -batch` and one `nft -f`, four
nodes at a time. Everything blocks; a trio program calls it directly (a fraction of a second) or in a thread.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from . import coturn
from .host import Host, Node
from .leftovers import new_prefix, raze, sweep
from .model import PLAIN, Link, Side, Site
from .namespace import DIRECTORY, entered, open_device, write_sysctls
from .plan import SERVER4, SERVER6, NodePlan, Plan, SitePlan, plan
from .spawner import Spawner, mortal
from .topology import draw
from .trace import Trace
from .userspace import Userspace

_WORKERS: Final = 4  # processes that configure nodes at one time; more gain nothing on two cores


class LaboratoryError(Exception):
    """The laboratory cannot be built; the message holds what the failing program said."""


@dataclass(frozen=True, slots=True)
class RunningSite:
    """A site of a running laboratory.

    Attributes:
        side: where it is connected.
        host: where programs run.
        boxes: its NATs, the host's own first, the carrier's (if any) last.
    """

    name: str
    site: Site
    side: Side
    host: Host
    boxes: tuple[Node, ...]


class Laboratory:
    """Sites and the Internet between them, for the length of a `with` block.

    Args:
        sites: the hosts and their boxes.
        backbone: the cables between the two providers and the core.
        server_link: the cable between the core and the server: lossy STUN with a clean path between the hosts.
        stun: whether coturn runs on the server.

    Resource handling: leaving the block kills every program that was started in it and every process that still
    lives in its namespaces, and removes them. If this process is killed, its programs die with it and the next
    laboratory removes the namespaces.

    Error handling: entering raises LaboratoryError, CoturnError, OSError (no privilege), or ValueError for a plan
    that cannot be; nothing stays behind.
    """

    def __init__(
        self, sites: Sequence[Site], *, backbone: Link = PLAIN, server_link: Link = PLAIN, stun: bool = True
    ) -> None:
        self._plan: Plan = plan(sites, backbone=backbone, server=server_link)
        self._with_stun = stun
        self._prefix = new_prefix()
        self._nodes: dict[str, Node] = {}
        self._sites: dict[str, RunningSite] = {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    @property
    def server(self) -> Host:
        """A public host with two addresses, without NAT: where STUN runs and rendezvous servers may."""
        server = self._nodes["server"]
        assert isinstance(server, Host)
        return server

    @property
    def stun(self) -> tuple[str, str]:
        """The two IPv4 STUN endpoints, as "ADDRESS:PORT"."""
        return f"{SERVER4[0]}:{coturn.PORT}", f"{SERVER4[1]}:{coturn.PORT}"

    @property
    def stun6(self) -> tuple[str, str]:
        """The two IPv6 STUN endpoints, as "[ADDRESS]:PORT"."""
        return f"[{SERVER6[0]}]:{coturn.PORT}", f"[{SERVER6[1]}]:{coturn.PORT}"

    @property
    def nodes(self) -> dict[str, Node]:
        """Every namespace by its short name: sites' hosts, their boxes ("a-box", "a-carrier"), routers, server."""
        return dict(self._nodes)

    def site(self, name: str) -> RunningSite:
        """The site of that name.

        Raises:
            KeyError: there is none.
        """
        return self._sites[name]

    def sites(self) -> Iterator[RunningSite]:
        """All sites, in the order given."""
        return iter(self._sites.values())

    def topology(self) -> str:
        """A drawing with addresses, several lines of plain text."""
        return draw(self._plan)

    def trace(self, directory: Path | str, nodes: Sequence[str] = ()) -> Trace:
        """Starts a packet trace of the named nodes, or of all, into DIRECTORY/NODE.pcap.

        The trace runs when this returns, and ends with `stop()`, its own `with` block or the laboratory.
        """
        chosen = {name: self._nodes[name] for name in nodes or self._nodes}
        trace = Trace(Path(directory), chosen)
        self._undo.callback(trace.stop)
        return trace

    def _build(self) -> None:
        sweep()
        paths = [DIRECTORY / (self._prefix + node.name) for node in self._plan.nodes]
        self._undo.callback(raze, paths)
        spawner = Spawner()
        self._undo.callback(spawner.close)
        _ip("".join(f"netns add {path.name}\n" for path in paths))
        for node, path in zip(self._plan.nodes, paths, strict=True):
            self._nodes[node.name] = Node(path.name, path, spawner)
            write_sysctls(path, node.sysctls)
        for place in self._plan.sites:
            self._settle(place)
        self._nodes["server"] = _host(self._nodes["server"], SERVER4, SERVER6, SERVER4[0])
        self._start()

    def _start(self) -> None:
        with Userspace(self._nodes["server"]) as userspace:
            self._lay_cables(userspace)
            userspace.start()
        server, *others = self._plan.nodes
        self._configure(server)
        stun: subprocess.Popen[Any] | None = coturn.start(self.server) if self._with_stun else None
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="natlab-setup") as pool:
            list(pool.map(self._configure, others))
        userspace.wait()
        if stun:
            coturn.wait(self.server, stun)

    def _settle(self, place: SitePlan) -> None:
        host = _host(
            self._nodes[place.site.name], (place.ipv4,), (place.ipv6,) if place.ipv6 else (), place.public_ipv4
        )
        self._nodes[place.site.name] = host
        boxes = tuple(self._nodes[box] for box in place.boxes)
        self._sites[place.site.name] = RunningSite(place.site.name, place.site, place.side, host, boxes)

    def _lay_cables(self, userspace: Userspace) -> None:
        veths: list[str] = []
        for cable in self._plan.cables:
            near, far = (f"{end.device} address {end.mac} netns {self._nodes[end.node].name}" for end in cable.ends)
            if cable.link.is_plain:
                veths.append(f"link add {near} type veth peer name {far}\n")
            else:
                taps = [open_device(self._nodes[end.node].path, end.device, frames=True) for end in cable.ends]
                userspace.add_cable(cable.link, (taps[0], taps[1]))
                for end in cable.ends:
                    node = next(node for node in self._plan.nodes if node.name == end.node)
                    node.commands.insert(0, f"link set {end.device} address {end.mac} txqueuelen 10000")
        _ip("".join(veths))
        for node in self._plan.nodes:
            if node.tunnel:
                userspace.add_nat(node.tunnel, open_device(self._nodes[node.name].path, "nat0", frames=False))

    def _configure(self, node: NodePlan) -> None:
        with entered(self._nodes[node.name].path):
            _ip("".join(f"{command}\n" for command in node.commands), node.name)
            if node.rules:
                _feed(["nft", "-f", "-"], node.rules, node.name)
        write_sysctls(self._nodes[node.name].path, node.late_sysctls)


def _host(node: Node, ipv4: tuple[str, ...], ipv6: tuple[str, ...], public: str) -> Host:
    first6 = ipv6[0] if ipv6 else None
    return Host(node.name, node.path, node.spawner, ipv4[0], first6, public, ipv4, ipv6)


def _ip(batch: str, node: str = "all nodes") -> None:
    _feed(["ip", "-batch", "-"], batch, node)


def _feed(command: list[str], text: str, node: str) -> None:
    try:
        done = subprocess.run(mortal(command), input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LaboratoryError(f"{error}: install iproute2 and nftables") from error
    if done.returncode:
        raise LaboratoryError(f"{command[0]} failed for {node} (run by uid {os.geteuid()}): {done.stderr.strip()}")
