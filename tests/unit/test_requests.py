"""Malformed request lines: each gets the code and the id that the line protocol names (§6, §13.6)."""

from __future__ import annotations

import base64

import pytest

from punchd.control.fields import Rules
from punchd.control.lines import MAX_LINE, LineSplitter
from punchd.control.requests import Request, parse_request
from punchd.endpoint import parse_ip
from punchd.errors import Code, ProtocolError
from tests.unit.strategies import RULES

INITIATE = "initiate|c1|udp|203.0.113.7|40000"
HEAD = "7f3a9c02d1e84b55" + "01" + "03"  # nonce, round 1, udp
BODY = "04" + "00" + "0000" + "c6336404" + "01c350" + "00" + "11" * 16


def wrap(hexadecimal: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(hexadecimal)).decode().rstrip("=")


OFFER = wrap("0201" + HEAD + "00" + BODY)
SKIP = wrap("0203" + HEAD + "00" + "07")
RESPOND = f"respond|r9|{OFFER}"


def offer(address: str) -> str:
    """The offer with another IPv4 address."""
    return wrap("0201" + HEAD + "00" + BODY.replace("c6336404", parse_ip(address).packed.hex()))


# Every row: the line, the code, the id of the error line (None: `-`). A row stands for one reason.
FRAMING = [
    ("", "bad-message", None),
    (" ", "bad-message", None),
    ("|", "bad-message", None),
    ("hello\t1", "bad-message", None),
    ("cancel|c1\r", "bad-message", None),
    ("cancel|c1\0", "bad-message", None),
    ("cancel|c\u00e91", "bad-message", None),
    ("cancel|c1\x7f", "bad-message", None),
    ("initiate|c1|" + "x" * 489, "too-long", None),
]
VERBS = [
    ("frobnicate|c1", "bad-message", None),
    ("Cancel|c1", "bad-message", None),
    (" cancel|c1", "bad-message", None),
    ("cancel |c1", "bad-message", None),
    ("ok|c1", "bad-message", None),
    ("initiat|c1|udp|203.0.113.7|40000", "bad-message", None),
]
COUNTS = [
    ("hello", "bad-message", None),
    ("hello|1|demo|x", "bad-message", None),
    ("cancel", "bad-message", None),
    ("cancel|c1|x", "bad-message", "c1"),
    ("cancel|c1|", "bad-message", "c1"),
    ("probe|p1", "bad-message", "p1"),
    ("probe|p1|udp|lport=5000|x", "bad-message", "p1"),
    ("initiate|c1", "bad-message", "c1"),
    ("initiate|c1|auto|203.0.113.7", "bad-message", "c1"),  # §9.6
    (f"{INITIATE}|ttl=4|x", "bad-message", "c1"),
    ("initiate|c1|nonsense|nonsense", "bad-message", "c1"),  # the number of fields comes before any of them
    ("respond|r9", "bad-message", "r9"),
    (f"{RESPOND}|ttl=4|x", "bad-message", "r9"),
]
IDS = [
    ("cancel|", "bad-message", None),
    ("cancel|-", "bad-message", None),
    ("cancel|c 1", "bad-message", None),
    ("cancel|c-1", "bad-message", None),
    ("cancel|" + "c" * 17, "bad-message", None),
    ("probe|p/1|udp", "bad-message", None),
    ("initiate||udp|203.0.113.7|40000", "bad-message", None),
    ("initiate|c:1|nonsense|203.0.113.7|40000", "bad-message", None),
    (f"respond|r~9|{OFFER}", "bad-message", None),
    ("respond|r=9|nonsense", "bad-message", None),
]
HELLOS = [
    ("hello|", "bad-version", None),
    ("hello|0", "bad-version", None),
    ("hello|01", "bad-version", None),
    ("hello|-1", "bad-version", None),
    ("hello|1.1", "bad-version", None),
    ("hello|1000", "bad-version", None),
    ("hello|x|sp ace", "bad-version", None),  # the leftmost
    ("hello|1|", "bad-message", None),
    ("hello|1|sp ace", "bad-message", None),
    ("hello|1|" + "x" * 33, "bad-message", None),
]
PROBES = [
    ("probe|p1|", "bad-technique", "p1"),
    ("probe|p1|UDP", "bad-technique", "p1"),
    ("probe|p1|sctp|nonsense", "bad-technique", "p1"),
    ("probe|p1|udp|", "bad-option", "p1"),
    ("probe|p1|udp|public=198.51.100.4", "bad-option", "p1"),
    ("probe|p1|udp|timeout=5000", "bad-option", "p1"),
    ("probe|p1|udp|lport=65536", "bad-port", "p1"),
    ("probe|p1|tcp|local=nowhere", "bad-address", "p1"),
    ("probe|p1|tcp|stun=stun.example.net", "bad-option", "p1"),
]
TECHNIQUES = [
    ("udpx", "bad-technique"),
    ("", "bad-technique"),
    ("-", "bad-technique"),
    ("UDP", "bad-technique"),
    ("u", "bad-technique"),
    ("udp,", "bad-technique"),
    (",udp", "bad-technique"),
    ("udp,,tcp-syni", "bad-technique"),
    ("udp, tcp-syni", "bad-technique"),
    ("udp;tcp-syni", "bad-technique"),
    ("auto,udp", "bad-technique"),
    ("all,all", "bad-technique"),
    ("udp,udp,udp", "bad-technique"),
    ("tcp-syni,udp,tcp-syni,udp,tcp-syni", "bad-technique"),
    ("udp,udp,tcp-syni,tcp-syni,tcp-nutss,tcp-nutss,tcp-repair,tcp-repair,a-plugin-of-16-c", "bad-technique"),
    ("a-plugin-of-16-ch", "bad-technique"),
]
ADDRESSES = [
    ("", "bad-address"),
    ("-", "bad-address"),
    ("example.net", "bad-address"),
    ("203.0.113", "bad-address"),
    ("203.0.113.7.1", "bad-address"),
    ("203.0.113.256", "bad-address"),
    ("203.0.113.07", "bad-address"),
    ("203.0.113.7 ", "bad-address"),
    ("203.0.113.7/32", "bad-address"),
    ("0xcb007107", "bad-address"),
    ("3405803783", "bad-address"),
    ("203.0.113.7:40000", "bad-address"),
    ("[2001:db8::1]", "bad-address"),
    ("2001:db8::1%eth0", "bad-address"),
    ("2001:db8::1::", "bad-address"),
    ("2001:DB8::1", "bad-address"),
    ("2001:0db8::1", "bad-address"),
    ("2001:db8:0:0:0:0:0:1", "bad-address"),
    ("2001:db8::1:0:0:0:1", "bad-address"),  # the longer run of zeros must be the shortened one
    ("2001:db8:0:1::1:0:1", "bad-address"),  # one group of zeros is not shortened
    ("2001:db8:1:2:3:4:5:6:7", "bad-address"),
    ("2001:db8::12345", "bad-address"),
    ("2001:db8::192.0.2.1", "bad-address"),
    ("::ffff:203.0.113.7", "bad-address"),
    ("::ffff:cb00:7107", "bad-address"),
    ("::203.0.113.7", "bad-address"),
    ("::cb00:7107", "bad-address"),
    ("::", "bad-address"),
    ("::1", "bad-address"),
    ("fe80::1", "bad-address"),
    ("febf::1", "bad-address"),
    ("fec0::1", "bad-address"),
    ("ff02::1", "bad-address"),
    ("fc00::1", "bad-address"),
    ("fdff::1", "bad-address"),
    ("0.0.0.0", "bad-address"),  # noqa: S104
    ("0.1.2.3", "bad-address"),
    ("127.0.0.1", "bad-address"),
    ("127.255.255.254", "bad-address"),
    ("169.254.1.1", "bad-address"),
    ("224.0.0.1", "bad-address"),
    ("239.255.255.255", "bad-address"),
    ("240.0.0.1", "bad-address"),
    ("255.255.255.255", "bad-address"),
    ("10.0.0.1", "bad-address"),
    ("172.16.0.1", "bad-address"),
    ("172.31.255.255", "bad-address"),
    ("192.168.1.1", "bad-address"),
    ("100.64.0.1", "bad-address"),
    ("100.127.255.255", "bad-address"),
]
PORTS = [
    ("", "bad-port"),
    ("-", "bad-port"),
    ("0", "bad-port"),
    ("65536", "bad-port"),
    ("70000", "bad-port"),  # §9.6
    ("040000", "bad-port"),
    ("00001", "bad-port"),
    ("+80", "bad-port"),
    (" 80", "bad-port"),
    ("8_0", "bad-port"),
    ("http", "bad-port"),
    ("9" * 300, "bad-port"),
    ("40000,", "bad-port"),
    (",40000", "bad-port"),
    ("40000;40001", "bad-port"),
    ("40000-", "bad-port"),
    ("-40000", "bad-port"),
    ("40000--40001", "bad-port"),
    ("40000-40001-40002", "bad-port"),
    ("40001-40000", "bad-port"),
    ("40000-40000", "bad-port"),
    ("65530-65536", "bad-port"),
    ("0-3", "bad-port"),
    ("40000,40000", "bad-port"),
    ("40000-40003,40002", "bad-port"),
    ("40000-40016", "bad-port"),
    ("1-65535", "bad-port"),
    ("40000-40007,50000-50008", "bad-port"),
    ("1,3,5,7,9", "bad-port"),
]
OPTIONS = [
    ("", "bad-option"),
    ("-", "bad-option"),
    ("ttl", "bad-option"),
    ("ttl=", "bad-option"),
    ("=4", "bad-option"),
    (";ttl=4", "bad-option"),
    ("ttl=4;", "bad-option"),
    ("ttl=4;;lport=0", "bad-option"),
    ("TTL=4", "bad-option"),
    (" ttl=4", "bad-option"),
    ("ttl = 4", "bad-option"),
    ("ttl==4", "bad-option"),
    ("ttl=4,ttl=4", "bad-option"),
    ("ttl=4&lport=0", "bad-option"),
    ("colour=blue", "bad-option"),
    ("overlongkey=1", "bad-option"),
    ("techniques=udp", "bad-option"),
    ("timeout_ms=5000", "bad-option"),
    ("ttl=4;ttl=4", "bad-option"),
    ("lport=0;lport=0", "bad-option"),
    ("stun=a.example:1;ttl=4;stun=b.example:2", "bad-option"),
    ("ttl=0", "bad-option"),
    ("ttl=65", "bad-option"),
    ("ttl=04", "bad-option"),
    ("ttl=-1", "bad-option"),
    ("timeout=0", "bad-option"),
    ("timeout=999", "bad-option"),
    ("timeout=120001", "bad-option"),
    ("timeout=05000", "bad-option"),
    ("timeout=5s", "bad-option"),
    ("timeout=5.5", "bad-option"),
    ("stun=stun.example.net", "bad-option"),
    ("stun=stun.example.net:", "bad-option"),
    ("stun=:3478", "bad-option"),
    ("stun=stun.example.net:0", "bad-option"),
    ("stun=stun.example.net:03478", "bad-option"),
    ("stun=stun.example.net:65536", "bad-option"),
    ("stun=stun.example.net:stun", "bad-option"),
    ("stun=[2001:db8::1]:3478", "bad-option"),
    ("stun=2001:db8::1::3478", "bad-option"),
    ("stun=a,b:3478", "bad-option"),
    ("stun=::::3478", "bad-option"),
    ("stun=" + "h" * 59 + ":3478", "bad-option"),
    ("stun=" + "h" * 60 + ":3478", "bad-option"),
    ("lport=80", "bad-port"),  # binding it would need a capability that the daemon drops
    ("lport=1023", "bad-port"),
    ("lport=65536", "bad-port"),
    ("lport=05000", "bad-port"),
    ("lport=-1", "bad-port"),
    ("lport=5000-5001", "bad-port"),
    ("pports=0", "bad-port"),
    ("pports=5,5", "bad-port"),
    ("pports=40001-40000", "bad-port"),
    ("pports=1-17", "bad-port"),
    ("pports=1,3,5,7,9", "bad-port"),
    ("local=nowhere", "bad-address"),
    ("local=0.0.0.0", "bad-address"),
    ("local=::", "bad-address"),
    ("local=224.0.0.1", "bad-address"),
    ("local=::ffff:10.0.0.1", "bad-address"),
    ("local=2001:db8::4", "bad-address"),  # the other side is IPv4
    ("public=10.0.0.1", "bad-address"),
    ("public=127.0.0.1", "bad-address"),
    ("public=0.0.0.0", "bad-address"),
    ("public=2001:db8::4", "bad-address"),
    ("public=2001:DB8::4", "bad-address"),
]
ONLY_INITIATE = [("peer=198.51.100.4", "bad-option"), ("tech=udp", "bad-option")]
ONLY_RESPOND = [
    ("peer=10.0.0.1", "bad-address"),
    ("peer=host", "bad-address"),
    ("peer=198.51.100.4;local=2001:db8::4", "bad-address"),
    ("local=2001:db8::4;peer=198.51.100.4", "bad-address"),
    ("tech=tcp", "bad-technique"),
    ("tech=udp,udp,udp", "bad-technique"),
    ("tech=auto,udp", "bad-technique"),
    ("tech=udp,", "bad-technique"),
    ("tech=" + "udp," * 16 + "x", "bad-option"),  # 65 characters: it is not even a value
]
TOKENS = [
    ("", "bad-token"),
    ("-", "bad-token"),
    (SKIP[:18], "bad-token"),
    (OFFER + "=" * (-len(OFFER) % 4) if len(OFFER) % 4 else OFFER + "=", "bad-token"),
    (OFFER + "!", "bad-token"),
    (OFFER.replace("A", "+", 1), "bad-token"),
    (" " + OFFER[1:], "bad-token"),
    (OFFER[:-1], "bad-token"),
    (OFFER[:-4], "bad-token"),
    (OFFER + "AAAA", "bad-token"),
    (SKIP[:-1] + chr(ord(SKIP[-1]) + 1), "bad-token"),  # the same bytes, unused bits set
    ("A" * 21, "bad-token"),  # no number of bytes has 21 characters
    ("A" * 201, "bad-token"),
    (wrap("00" * 14), "bad-token"),
    (wrap("0101" + HEAD + "00" + BODY), "bad-token"),  # layout 1 is not spoken any more
    (wrap("0301" + HEAD + "00" + BODY), "token-version"),
    (wrap("ff" + "00" * 13), "token-version"),
    (wrap("0200" + HEAD + "00" + BODY), "bad-token"),
    (wrap("0206" + HEAD + "00" + BODY), "bad-token"),
    (wrap("0201" + HEAD.replace("0103", "0003") + "00" + BODY), "bad-token"),  # round 0
    (wrap("0201" + HEAD.replace("0103", "0100") + "00" + BODY), "bad-token"),  # technique 0
    (wrap("0201" + HEAD.replace("0103", "0105") + "00" + BODY), "bad-token"),  # technique 5
    (wrap("0201" + HEAD + "08" + BODY), "bad-token"),  # unknown flag
    (wrap("0201" + HEAD + "01" + BODY), "bad-token"),  # IPv6 with four bytes of address
    (wrap("0201" + HEAD + "00" + "00" + BODY[2:]), "bad-token"),  # TTL 0
    (wrap("0201" + HEAD + "00" + "41" + BODY[2:]), "bad-token"),  # TTL 65
    (wrap("0201" + HEAD + "00" + BODY.replace("0400", "0401", 1)), "bad-token"),  # an offer with a counter
    (wrap("0205" + HEAD + "00" + BODY), "bad-token"),  # a note without one
    (wrap("0201" + HEAD + "00" + BODY.replace("01c350", "00c350")), "bad-token"),  # no port
    (wrap("0201" + HEAD + "00" + BODY.replace("01c350", "010000")), "bad-token"),  # port 0
    (wrap("0201" + HEAD + "00" + BODY.replace("01c350", "02c350c350")), "bad-token"),  # twice
    (wrap("0201" + HEAD + "00" + BODY.replace("01c350", "11" + "c350" * 17)), "bad-token"),
    (wrap("0201" + HEAD + "00" + BODY.replace("01c35000", "01c35001000001")), "bad-token"),  # opened port 0
    (wrap("0201" + HEAD + "00" + BODY.replace("01c35000", "01c35001ffff02")), "bad-token"),  # opened 65536
    (wrap("0201" + HEAD + "00" + BODY.replace("01c35000", "01c35001c35000")), "bad-token"),  # a run of none
    (wrap("0201" + HEAD + "00" + BODY.replace("01c35000", "01c35002c35001c35101")), "bad-token"),  # two runs are one
    (wrap("0201" + HEAD + "00" + BODY.replace("01c35000", "01c35002c35002c35101")), "bad-token"),  # twice
    (wrap("0201" + HEAD + "00" + BODY.replace("01c35000", "01c35005" + "c35001c35201c35401c35601c35801")), "bad-token"),
    (wrap("0203" + HEAD + "01" + "07"), "bad-token"),  # a skip with a flag
    (wrap("0203" + HEAD + "00" + "04"), "bad-token"),  # unknown reason
    (wrap("0203" + HEAD + "00" + "07" + "00"), "bad-token"),
    (offer("0.0.0.0"), "bad-address"),  # noqa: S104
    (offer("127.0.0.1"), "bad-address"),
    (offer("255.255.255.255"), "bad-address"),
    (offer("192.168.1.1"), "bad-address"),
    (wrap("0202" + HEAD + "00" + BODY.replace("c6336404", "0a000001")), "bad-address"),  # an answer
    (wrap("0205" + HEAD + "00" + BODY.replace("0400", "0401", 1).replace("c6336404", "e0000001")), "bad-address"),
    (wrap("0201" + HEAD + "01" + BODY.replace("c6336404", "00" * 10 + "ffff" + "c6336404")), "bad-address"),
]
LEFTMOST = [
    ("initiate|c1|x|x|x|x", "bad-technique", "c1"),
    ("initiate|c1|udp|x|x|x", "bad-address", "c1"),
    ("initiate|c1|udp|10.0.0.1|x|x", "bad-address", "c1"),
    ("initiate|c1|udp|203.0.113.7|x|x", "bad-port", "c1"),
    (f"{INITIATE}|ttl=0;lport=80", "bad-option", "c1"),
    (f"{INITIATE}|lport=80;ttl=0", "bad-port", "c1"),
    (f"{INITIATE}|local=x;lport=80", "bad-address", "c1"),
    (f"respond|r9|{SKIP}A|ttl=0", "bad-token", "r9"),
    (f"respond|r9|{offer('10.0.0.1')}|ttl=0", "bad-address", "r9"),
]
MALFORMED = [
    *FRAMING,
    *VERBS,
    *COUNTS,
    *IDS,
    *HELLOS,
    *PROBES,
    *((f"initiate|c1|{text}|203.0.113.7|40000", code, "c1") for text, code in TECHNIQUES),
    *((f"initiate|c1|udp|{text}|40000", code, "c1") for text, code in ADDRESSES),
    *((f"initiate|c1|udp|203.0.113.7|{text}", code, "c1") for text, code in PORTS),
    *((f"{INITIATE}|{text}", code, "c1") for text, code in (*OPTIONS, *ONLY_INITIATE)),
    *((f"{RESPOND}|{text}", code, "r9") for text, code in ONLY_RESPOND),
    *((f"respond|r9|{text}", code, "r9") for text, code in TOKENS),
    *LEFTMOST,
]


def take(line: bytes, rules: Rules = RULES) -> Request:
    """As the daemon does: framing first, then the line."""
    [found] = LineSplitter().feed(line + b"\n")
    if isinstance(found, ProtocolError):
        raise found
    return parse_request(found, rules)


def test_the_table_is_large_and_every_line_stands_in_it_once() -> None:
    assert len(MALFORMED) >= 100
    assert len({line for line, _, _ in MALFORMED}) == len(MALFORMED)


@pytest.mark.parametrize(("line", "code", "attempt_id"), MALFORMED, ids=[line[:70] for line, _, _ in MALFORMED])
def test_a_malformed_line_gets_its_code_and_the_id_that_could_be_read(
    line: str, code: str, attempt_id: str | None
) -> None:
    with pytest.raises(ProtocolError) as caught:
        take(line.encode("latin-1"))
    assert (caught.value.code, caught.value.attempt_id) == (Code(code), attempt_id)
    assert 0 < len(str(caught.value)) < MAX_LINE
