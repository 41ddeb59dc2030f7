"""What Hypothesis builds the values of the protocol from: structured, since random bytes never get past a parser."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from punchd.control.fields import Options
from punchd.control.requests import Cancel, Hello, Initiate, Probe, Protocol, Request, Respond, Rules
from punchd.endpoint import IPAddress, PortSet, objection, runs
from punchd.wire.token import FIRST_PLUGIN_NUMBER, TECHNIQUE_NUMBERS, Card, Farewell, Kind, Token

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALNUM = LETTERS + LETTERS.upper() + "0123456789"
PLUGIN = "a-plugin-of-16-c"  # the longest name that a technique may have
BODY_SIZES = {"tcp-syni": 8, "tcp-nutss": 0, "udp": 16, "tcp-repair": 4}  # bytes a technique adds to its card
NAMES = (*TECHNIQUE_NUMBERS, PLUGIN)
RULES = Rules(NAMES)

ports = st.integers(1, 65535)


def addresses(version: int) -> st.SearchStrategy[IPAddress]:
    """Any address of one family; half of them in the ranges that have special meanings."""
    if version == 4:
        near = st.sampled_from(["10.0.0.0", "100.64.0.0", "127.0.0.0", "172.16.0.0", "192.168.0.0", "224.0.0.0"])
        return st.one_of(
            st.integers(0, 2**32 - 1).map(IPv4Address),
            st.builds(lambda base, low: IPv4Address(int(IPv4Address(base)) + low), near, st.integers(-2, 2**16)),
        )
    groups = st.lists(st.sampled_from([0, 0, 0, 1, 0xFC00, 0xFE80, 0xFFFF, 0x2001]), min_size=8, max_size=8)
    return st.one_of(
        st.integers(0, 2**128 - 1).map(IPv6Address),
        groups.map(lambda parts: IPv6Address(b"".join(part.to_bytes(2) for part in parts))),
    )


def targets(version: int) -> st.SearchStrategy[IPAddress]:
    """Addresses that may be aimed at."""
    return addresses(version).filter(lambda ip: objection(ip, allow_private=False) is None)


@st.composite
def port_sets(draw: st.DrawFn, most_runs: int = 4) -> PortSet:
    """1 to 16 different ports in at most `most_runs` runs."""
    found: list[int] = []
    for _ in range(draw(st.integers(1, most_runs))):
        first, length = draw(ports), draw(st.integers(1, 8))
        fresh = [port for port in range(first, min(first + length, 65536)) if port not in found]
        if len(runs((*found, *fresh))) <= most_runs:
            found.extend(fresh)
    return PortSet(tuple(found[:16]))


@st.composite
def cards(draw: st.DrawFn, number: int, kind: Kind) -> Card:
    version = draw(st.sampled_from((4, 6)))
    address = draw(targets(version))
    if kind is not Kind.OFFER and draw(st.booleans()):
        address = IPv4Address(0) if version == 4 else IPv6Address(0)
    sizes = {TECHNIQUE_NUMBERS[name]: (size, size) for name, size in BODY_SIZES.items()}
    least, most = sizes.get(number, (0, 40))
    body = draw(st.binary(min_size=least, max_size=most))
    return Card(
        address=address,
        ports=draw(st.one_of(port_sets(), st.lists(ports, min_size=1, max_size=16, unique=True).map(_port_set))),
        opened=draw(st.one_of(st.just(()), port_sets().map(lambda found: found.ports))),
        predicted=draw(st.booleans()),
        ttl=draw(st.integers(1, 64)),
        rtt_ms=draw(st.integers(0, 65535)),
        body=body,
        reversed_roles=draw(st.booleans()),
    )


def _port_set(found: list[int]) -> PortSet:
    return PortSet(tuple(found))


@st.composite
def tokens(draw: st.DrawFn) -> Token:
    """Every token that `encode` takes."""
    kind = draw(st.sampled_from(Kind))
    number = draw(st.one_of(st.sampled_from(sorted(TECHNIQUE_NUMBERS.values())), st.integers(FIRST_PLUGIN_NUMBER, 255)))
    nonce, round_number = draw(st.binary(min_size=8, max_size=8)), draw(st.integers(1, 255))
    if kind in (Kind.SKIP, Kind.ABORT):
        return Token(kind, nonce, round_number, number, farewell=draw(st.sampled_from(Farewell)))
    counter = draw(st.integers(1, 255)) if kind is Kind.NOTE else 0
    return Token(kind, nonce, round_number, number, card=draw(cards(number, kind)), counter=counter)


ids = st.text(ALNUM + "_.", min_size=1, max_size=16)
techniques = st.one_of(
    st.sampled_from([("auto",), ("all",)]),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(
        lambda names: tuple(name for at, name in enumerate(names) if names[:at].count(name) < 2)
    ),
)
hosts = st.one_of(
    st.text(ALNUM + "._-", min_size=1, max_size=58),
    addresses(4).map(str),
    addresses(6).filter(lambda ip: isinstance(ip, IPv6Address) and ip.ipv4_mapped is None).map(str),
)


@st.composite
def options(draw: st.DrawFn, version: int, *, attempt: bool = True, responder: bool = False) -> Options:
    def maybe(strategy: st.SearchStrategy[object]) -> object:
        return draw(st.one_of(st.none(), strategy))

    stun = st.tuples(hosts, ports)
    local = targets(version)
    lport = draw(st.one_of(st.just(0), st.integers(1024, 65535)))
    if not attempt:
        return Options(local=maybe(local), lport=lport, stun=maybe(stun))  # type: ignore[arg-type]
    return Options(
        local=maybe(local),  # type: ignore[arg-type]
        lport=lport,
        public=maybe(targets(version)),  # type: ignore[arg-type]
        pports=maybe(port_sets()),  # type: ignore[arg-type]
        peer=maybe(targets(version)) if responder else None,  # type: ignore[arg-type]
        techniques=maybe(techniques) if responder else None,  # type: ignore[arg-type]
        timeout_ms=maybe(st.integers(1000, 120_000)),  # type: ignore[arg-type]
        ttl=maybe(st.integers(1, 64)),  # type: ignore[arg-type]
        stun=maybe(stun),  # type: ignore[arg-type]
        sock=draw(st.booleans()),
    )


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Every request that the grammar has."""
    version = draw(st.sampled_from((4, 6)))
    match draw(st.integers(0, 4)):
        case 0:
            return Hello(draw(st.integers(1, 999)), draw(st.none() | st.text(ALNUM + "_.+/-", min_size=1, max_size=32)))
        case 1:
            return Probe(draw(ids), draw(st.sampled_from(Protocol)), draw(options(version, attempt=False)))
        case 2:
            target, chosen = draw(targets(version)), draw(options(version))
            return Initiate(draw(ids), draw(techniques), target, draw(port_sets()), chosen)
        case 3:
            return Respond(draw(ids), draw(tokens()), draw(options(version, responder=True)))
        case _:
            return Cancel(draw(ids))
