"""From what one side saw in a round to one sentence that a person can act on.

    seen, the first that fits                                        finding
    SYN, SYN-ACK, data of the peer from a port nobody named          PORT_CHANGED
    a SYN-ACK of the peer                                            SYN_ACK_IN_VAIN
    a SYN of the peer, and a SYN-ACK of ours went out                SYN_ACK_UNANSWERED
    a SYN of the peer, and none went out                             SYN_NOT_ANSWERED_HERE
    other segments, or datagrams, of the peer                        ONE_WAY
    ICMP administratively prohibited                                 PROHIBITED
    ICMP time exceeded about packets that had the full TTL           DIED_AT_FULL_TTL
    ICMP: net, host, protocol or port unreachable                    UNREACHABLE
    an RST with a TTL that no router has lowered                     RESET_AT_HOME
    an RST from further away                                         RESET
    nothing                                                          SILENCE

Why this order. What the peer itself sent proves most of the path, so only what is missing behind it is left to explain;
an error of a NAT that came before it was open is then an incident, and is named at the end ("besides"). Among errors
the more specific one comes first: a rule that somebody wrote, a path that leads nowhere, a host that is not there. RST
comes last: it also comes back from NATs that were only not open yet.

How an RST is told to be a NAT's. punchd's ports are held by listeners that answer nothing, so the peer sends none while
its half of the round runs. And stacks start at a TTL of 64, 128 or 255: what is missing is the distance in hops.

Low-TTL packets are meant to die on the way. Each of them accounts for one time-exceeded error with its sequence number;
only errors beyond these are about packets that should have arrived. Where the low-TTL ones died is told all the same
(DIED_AS_MEANT), for if that was at a private address, they never left the own network (DIED_TOO_EARLY).

What is known of both NATs goes behind it: OWN_RANDOM and PEER_GUESSES explain silence where nothing else does.

Pure. Everything here is a hint: ICMP errors and RSTs can be forged by whoever knows the ports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from enum import StrEnum

from punchd.endpoint import Endpoint, IPAddress, PortSet, is_private
from punchd.technique import Complaint
from punchd.wire.icmp import Kind

# Characters. A `failed` line has 200 for text, of which 36 may say how the round ended ("the initiator went on to …").
MAX_SENTENCE = 160
MAX_DIFFERENT = 64  # things remembered of each sort; strangers can forge any number of them
FULL_TTL = 64
_FIRST_TTLS = (64, 128, 255)  # Linux and BSD, Windows, routers


class Finding(StrEnum):
    """The words. docs/explanations.md says for each what it means and what to do."""

    PORT_CHANGED = "{what} came from {source}, but {named} was announced: its NAT changes ports"
    SYN_ACK_IN_VAIN = "SYN-ACK came from {source}, but in vain: a firewall here drops it, or a NAT rewrites numbers"
    SYN_ACK_UNANSWERED = "SYN came from {source}, but our SYN-ACK is unanswered: a NAT on the way drops it"
    SYN_NOT_ANSWERED_HERE = (
        "SYN came from {source}, but no SYN-ACK left this host: its own firewall may drop one of them"
    )
    ONE_WAY = "{what} came from {source}, but nothing shows that ours reach it: a NAT on the way drops them"
    PROHIBITED = "ICMP prohibited by {router}: a firewall there lets nothing through to {target}"
    DIED_AT_FULL_TTL = "time exceeded from {router}, hop {hop}, on the way to {target}: a routing loop"
    UNREACHABLE = "ICMP {what} from {router}: nobody there takes packets to {target}"
    RESET_AT_HOME = "RST in the name of {source}, but from the next hop: the own router refuses the connection"
    RESET = "RST came from {source}, {distance}: the NAT there refuses what it does not expect"
    SILENCE = "no answer at all from {peer}"
    BESIDES = "besides: {what}"
    DIED_AS_MEANT = "low-TTL packets died at {router}, hop {hop}, as meant"
    DIED_TOO_EARLY = "low-TTL packets died at {router}, hop {hop}, still inside: raise ttl"
    OWN_RANDOM = "the own NAT picks a random port for each destination, so the peer cannot know ours"
    PEER_GUESSES = "the peer's ports are guesses: its NAT may have a new one for each destination"


class Seen:
    """What one side of one round has seen so far.

    Args:
        peer: its public address.
        low_ttl: of packets that are meant to die on the way.
    """

    def __init__(self, peer: IPAddress, low_ttl: int) -> None:
        self._peer = peer
        self._low_ttl = low_ttl
        self._low_sent: Counter[tuple[int, int | None]] = Counter()  # low-TTL packets by port and sequence number
        self._full_sent: set[tuple[int, int | None]] = set()
        self._answered = False  # a SYN-ACK of ours went out
        self._came: dict[str, list[int]] = {}  # what -> the peer's ports, in the order of their first one
        self._reset: tuple[int, int | None] | None = None  # port and TTL of the last RST, None: not seen
        self._died: Counter[tuple[int, int | None]] = Counter()
        self._died_low: IPAddress | None = None
        self._died_full: tuple[IPAddress, int] | None = None
        self._failure = ""
        self._complaints: dict[Kind, tuple[IPAddress, int]] = {}  # the last router and port of each kind

    # --- what happens ----------------------------------------------------------------------------------------------

    def sent(self, what: str, port: int, ttl: int | None, seq: int | None = None) -> None:
        """A packet of ours left; None is the system's TTL."""
        if what == "SYN-ACK":
            self._answered = True
        if ttl is not None and ttl <= self._low_ttl:
            self._low_sent[port, seq] += 1
        else:
            self._full_sent.add((port, seq))

    def came(self, what: str, port: int, ttl: int | None = None) -> None:
        """A packet came from that port of the peer, or of a NAT in its name."""
        if what == "RST":
            self._reset = (port, ttl) if ttl is not None or self._reset is None else self._reset
            return
        ports = self._came.setdefault(what, [])
        if port not in ports and len(ports) < MAX_DIFFERENT:
            ports.append(port)

    def complained(self, complaint: Complaint) -> None:
        """An ICMP error came. Those about packets that were never sent are forged, and ignored."""
        about = complaint.port, complaint.seq
        if about not in self._low_sent and about not in self._full_sent:
            return
        if complaint.kind is not Kind.TIME_EXCEEDED:
            self._complaints[complaint.kind] = (complaint.router, complaint.port)
            return
        self._died[about] += 1
        if self._died[about] <= self._low_sent[about]:
            self._died_low = complaint.router
        else:
            self._died_full = (complaint.router, complaint.port)

    def failed(self, why: str) -> None:
        """Something that no packet tells went wrong on this host."""
        self._failure = why

    # --- what it means ---------------------------------------------------------------------------------------------

    def explain(self, named: Collection[int], *, own_is_random: bool, peer_guesses: bool, is_private_here: bool) -> str:
        """One sentence, of at most MAX_SENTENCE characters.

        Args:
            named: the peer's ports that the application or a card has named.
            own_is_random: the own NAT picks a random port for each destination.
            peer_guesses: the peer says that its ports are predictions.
            is_private_here: the own address is private, so that a NAT stands before the public network.
        """
        sentence = self._finding(named)
        for more in self._circumstances(own_is_random, peer_guesses, is_private_here):
            if len(sentence) + 2 + len(more) <= MAX_SENTENCE:
                sentence = f"{sentence}; {more}"
        return sentence

    def _finding(self, named: Collection[int]) -> str:
        sources: dict[str, Endpoint] = {}
        for what, ports in self._came.items():
            expected = [port for port in ports if port in named]
            if not expected:
                announced = str(PortSet.of(named)) if named else "no port"
                return Finding.PORT_CHANGED.format(what=what, source=self._end(ports[0]), named=announced)
            sources[what] = self._end(expected[0])
        if "SYN-ACK" in sources:
            return Finding.SYN_ACK_IN_VAIN.format(source=sources["SYN-ACK"])
        if "SYN" in sources:
            words = Finding.SYN_ACK_UNANSWERED if self._answered else Finding.SYN_NOT_ANSWERED_HERE
            return words.format(source=sources["SYN"])
        for what, source in sources.items():
            return Finding.ONE_WAY.format(what=what, source=source)
        return self._refusal() or Finding.SILENCE.format(peer=self._peer)

    def _refusal(self) -> str | None:
        """Errors, where nothing of the peer came."""
        if (found := self._complaints.get(Kind.ADMIN_PROHIBITED)) is not None:
            return Finding.PROHIBITED.format(router=found[0], target=self._end(found[1]))
        if self._died_full is not None:
            router, port = self._died_full
            return Finding.DIED_AT_FULL_TTL.format(router=router, hop=FULL_TTL, target=self._end(port))
        for kind, (router, port) in self._complaints.items():
            if kind is not Kind.TOO_BIG:
                return Finding.UNREACHABLE.format(what=words_of(kind), router=router, target=self._end(port))
        if self._reset is None:
            return None
        port, ttl = self._reset
        if ttl is None:
            return Finding.RESET.format(source=self._end(port), distance="of unknown distance")
        hops = min(first for first in _FIRST_TTLS if first >= ttl) - ttl
        words = Finding.RESET if hops else Finding.RESET_AT_HOME
        return words.format(source=self._end(port), distance=f"{hops} hops away")

    def _circumstances(self, own_is_random: bool, peer_guesses: bool, is_private_here: bool) -> list[str]:
        """What goes behind the finding, the most useful first."""
        found: list[str] = []
        if self._failure:
            found.append(Finding.BESIDES.format(what=self._failure))
        if not self._came and self._died_low is not None:
            is_inside = is_private_here and is_private(self._died_low)
            words = Finding.DIED_TOO_EARLY if is_inside else Finding.DIED_AS_MEANT
            found.append(words.format(router=self._died_low, hop=self._low_ttl))
        if own_is_random:
            found.insert(0, Finding.OWN_RANDOM)
        if peer_guesses and not self._came:
            found.append(Finding.PEER_GUESSES)
        incidents = [f"ICMP {words_of(kind)}" for kind in self._complaints] + ["RST"] * (self._reset is not None)
        if self._came and incidents:
            found.append(Finding.BESIDES.format(what=", ".join(sorted(incidents))))
        return found

    def _end(self, port: int) -> Endpoint:
        return Endpoint(self._peer, port)


def words_of(kind: Kind) -> str:
    return kind.name.lower().replace("_", " ").replace("admin", "administratively")
