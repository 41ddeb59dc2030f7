"""The nft tables as netlink messages, the exemptions' and the guard's; pure.

What `nft list ruleset` shows of it:

    table inet punchd-4711-9f3c2a { # progname punchd
        flags owner
        set ports4 { type inet_service; size 1024; flags timeout; elements = { 40000 timeout 3m expires 2m58s } }
        set ports6 { type inet_service; size 1024; flags timeout; }
        chain input {
            type filter hook input priority filter; policy accept;
            icmp type time-exceeded @th,136,8 6 @th,224,16 @ports4 drop
            icmpv6 type time-exceeded @th,112,8 6 @th,384,16 @ports6 drop
        }
    }

An ICMP error quotes the packet that it is about, behind eight bytes of its own (RFC 792, RFC 4443 §3.3). So, counted
from the ICMP header: 8 + 9 is the protocol and 8 + 20 the source port of a quoted IPv4 segment without options (ours
have none), 8 + 6 and 8 + 40 those of a quoted IPv6 segment without extension headers. The protocol is compared, too,
so that a UDP traceroute from the same port number still sees its answers.

The rules never change; an exemption is one element of a set. The chain's policy is accept, and accepting in one
chain ends nothing in the others (nft(8), "verdict statements"): the table can only take away, and only this.

The guard (guard.py) is a table of its own:

    table inet punchd-4711-9f3c2a { # progname punchd
        flags owner
        chain output {
            type filter hook output priority filter; policy accept;
            oif != "lo" meta skuid 990 fib saddr type != local counter packets 0 bytes 0 drop
        }
    }

The tests stand in the order of their price, since every packet that the host sends comes by. `inet` is both families.

The messages are pyroute2's; the attributes are those of linux/netfilter/nf_tables.h. Sending them is nft.py's task.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELSETELEM,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWSET,
    NFT_MSG_NEWSETELEM,
    NFT_MSG_NEWTABLE,
    nft_chain_msg,
    nft_rule_msg,
    nft_set_elem_list_msg,
    nft_set_msg,
    nft_table_msg,
)

SETS: dict[int, str] = {socket.AF_INET: "ports4", socket.AF_INET6: "ports6"}
CHAIN = "input"
GUARD_CHAIN = "output"

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # linux/netfilter/nfnetlink.h
_REQUEST, _ACK, _CREATE, _EXCLUSIVE, _APPEND = 0x1, 0x4, 0x400, 0x200, 0x800  # linux/netlink.h
_INET = 1  # NFPROTO_INET
_IPV4, _IPV6 = 2, 10  # NFPROTO_IPV4, NFPROTO_IPV6: what meta nfproto says
_OWNER = 0x2  # NFT_TABLE_F_OWNER
_INET_SERVICE = 13  # nftables' number of the type; the kernel only hands it back to `nft list`
_LOCAL_IN, _LOCAL_OUT, _PRIORITY = 1, 3, 0  # NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT, "filter"
_ACCEPT, _DROP = 1, 0
_META_OIF, _META_SKUID, _META_NFPROTO, _META_L4PROTO = 5, 10, 15, 16
_TRANSPORT_HEADER = 2  # NFT_PAYLOAD_TRANSPORT_HEADER
_EQUAL, _NOT_EQUAL = 0, 1
_FIB_SOURCE = 1  # NFTA_FIB_F_SADDR
# NFT_FIB_RESULT_ADDRTYPE is the number 3; pyroute2 takes it for bits, and these two are bits 0 and 1
_FIB_ADDRESS_TYPE = frozenset({"NFT_FIB_RESULT_UNSPEC", "NFT_FIB_RESULT_OIF"})
_LOOPBACK = 1  # the interface index of `lo` in every network namespace
_LOCAL = 2  # RTN_LOCAL, linux/rtnetlink.h
_REGISTER, _VERDICT_REGISTER = 1, 0


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a batch. pyroute2's own are made when they are sent: encoding one twice appends to it.

    Attributes:
        kind: pyroute2's class of message.
        number: NFT_MSG_…
        flags: NLM_F_…
        attributes: as pyroute2 wants them.
    """

    kind: Any
    number: int
    flags: int
    attributes: list[list[Any]]


def table(name: str, size: int) -> list[Message]:
    """All that is fixed, for one batch: it is there as a whole or not at all. `size`: most elements of each set."""
    return [
        _table(name),
        *(_set(name, number, size) for number in range(len(SETS))),
        _chain(name, CHAIN, _LOCAL_IN),
        *(_rule(name, CHAIN, expressions(family)) for family in SETS),
    ]


def guard_table(name: str, uid: int) -> list[Message]:
    """The guard: what sockets of `uid` send out of this host has a source address of this host, or is dropped."""
    forbidden = [
        _meta(_META_OIF),
        _compare(_native(_LOOPBACK), _NOT_EQUAL),
        _meta(_META_SKUID),
        _compare(_native(uid)),
        _expression("fib", ("DREG", _REGISTER), ("RESULT", _FIB_ADDRESS_TYPE), ("FLAGS", _FIB_SOURCE)),
        _compare(_native(_LOCAL), _NOT_EQUAL),
        _expression("counter", ("BYTES", 0), ("PACKETS", 0)),
        _drop(),
    ]
    return [_table(name), _chain(name, GUARD_CHAIN, _LOCAL_OUT), _rule(name, GUARD_CHAIN, forbidden)]


def expressions(family: int) -> list[dict[str, Any]]:
    """The rule of a family (AF_INET or AF_INET6): time exceeded, quoting TCP, from a port of the set: drop."""
    if family == socket.AF_INET:
        network, protocol, time_exceeded, quoted_protocol, quoted_port = _IPV4, socket.IPPROTO_ICMP, 11, 8 + 9, 8 + 20
    else:
        network, protocol, time_exceeded, quoted_protocol, quoted_port = _IPV6, socket.IPPROTO_ICMPV6, 3, 8 + 6, 8 + 40
    return [
        _meta(_META_NFPROTO),
        _compare(bytes([network])),
        _meta(_META_L4PROTO),
        _compare(bytes([protocol])),
        _load(0, 1),
        _compare(bytes([time_exceeded])),
        _load(quoted_protocol, 1),
        _compare(bytes([socket.IPPROTO_TCP])),
        _load(quoted_port, 2),
        _expression("lookup", ("SET", SETS[family]), ("SREG", _REGISTER)),
        _drop(),
    ]


def add_port(name: str, family: int, port: int, timeout_ms: int) -> Message:
    """The exemption of a port, which the kernel forgets after `timeout_ms`. EEXIST if it is there."""
    element = [*_key(port), ("NFTA_SET_ELEM_TIMEOUT", timeout_ms)]
    return _element(NFT_MSG_NEWSETELEM, _CREATE | _EXCLUSIVE, name, family, element)


def remove_port(name: str, family: int, port: int) -> Message:
    """The end of the exemption. ENOENT if it is not there."""
    return _element(NFT_MSG_DELSETELEM, 0, name, family, _key(port))


def batch(messages: Sequence[Message], first_sequence: int) -> bytes:
    """One transaction. Messages have consecutive numbers from `first_sequence` on, the begin message's; the last but
    one asks for an acknowledgement."""
    data = _encoded(nfgen_msg(), _BATCH_BEGIN, 0, first_sequence)
    for sequence, part in enumerate(messages, first_sequence + 1):
        message = part.kind()
        message["attrs"] = part.attributes
        ack = _ACK if part is messages[-1] else 0
        data += _encoded(message, NFNL_SUBSYS_NFTABLES << 8 | part.number, part.flags | ack, sequence)
    return data + _encoded(nfgen_msg(), _BATCH_END, 0, first_sequence + len(messages) + 1)


def _encoded(message: Any, number: int, flags: int, sequence: int) -> bytes:
    if number in {_BATCH_BEGIN, _BATCH_END}:
        message["res_id"] = NFNL_SUBSYS_NFTABLES
    else:
        message["nfgen_family"] = _INET
    message["header"]["type"] = number
    message["header"]["flags"] = _REQUEST | flags
    message["header"]["sequence_number"] = sequence
    message.encode()
    return bytes(message.data)


def _table(name: str) -> Message:
    attributes: list[list[Any]] = [["NFTA_TABLE_NAME", name], ["NFTA_TABLE_FLAGS", _OWNER]]
    return Message(nft_table_msg, NFT_MSG_NEWTABLE, _CREATE | _EXCLUSIVE, attributes)


def _chain(table_name: str, name: str, hook: int) -> Message:
    attributes: list[list[Any]] = [
        ["NFTA_CHAIN_TABLE", table_name],
        ["NFTA_CHAIN_NAME", name],
        ["NFTA_CHAIN_HOOK", _nested(("NFTA_HOOK_HOOKNUM", hook), ("NFTA_HOOK_PRIORITY", _PRIORITY))],
        ["NFTA_CHAIN_POLICY", _ACCEPT],
        ["NFTA_CHAIN_TYPE", "filter"],
    ]
    return Message(nft_chain_msg, NFT_MSG_NEWCHAIN, _CREATE | _EXCLUSIVE, attributes)


def _rule(table_name: str, chain: str, steps: list[dict[str, Any]]) -> Message:
    attributes: list[list[Any]] = [
        ["NFTA_RULE_TABLE", table_name],
        ["NFTA_RULE_CHAIN", chain],
        ["NFTA_RULE_EXPRESSIONS", steps],
    ]
    return Message(nft_rule_msg, NFT_MSG_NEWRULE, _CREATE | _APPEND, attributes)


def _set(name: str, number: int, size: int) -> Message:
    attributes: list[list[Any]] = [
        ["NFTA_SET_TABLE", name],
        ["NFTA_SET_NAME", list(SETS.values())[number]],
        ["NFTA_SET_ID", number + 1],
        ["NFTA_SET_FLAGS", {"NFT_SET_TIMEOUT"}],
        ["NFTA_SET_KEY_TYPE", _INET_SERVICE],
        ["NFTA_SET_KEY_LEN", 2],
        ["NFTA_SET_DESC", _nested(("NFTA_SET_DESC_SIZE", size))],
    ]
    return Message(nft_set_msg, NFT_MSG_NEWSET, _CREATE | _EXCLUSIVE, attributes)


def _element(number: int, flags: int, name: str, family: int, element: list[tuple[str, Any]]) -> Message:
    attributes: list[list[Any]] = [
        ["NFTA_SET_ELEM_LIST_TABLE", name],
        ["NFTA_SET_ELEM_LIST_SET", SETS[family]],
        ["NFTA_SET_ELEM_LIST_ELEMENTS", [_nested(*element)]],
    ]
    return Message(nft_set_elem_list_msg, number, flags, attributes)


def _key(port: int) -> list[tuple[str, Any]]:
    return [("NFTA_SET_ELEM_KEY", _nested(("NFTA_DATA_VALUE", port.to_bytes(2, "big"))))]


def _nested(*attributes: tuple[str, Any]) -> dict[str, Any]:
    return {"attrs": list(attributes)}


def _expression(name: str, *attributes: tuple[str, Any]) -> dict[str, Any]:
    data = _nested(*((f"NFTA_{name.upper()}_{key}", value) for key, value in attributes))
    return _nested(("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", data))


def _load(offset: int, length: int) -> dict[str, Any]:
    """Bytes from the transport header on into the register."""
    return _expression("payload", ("DREG", _REGISTER), ("BASE", _TRANSPORT_HEADER), ("OFFSET", offset), ("LEN", length))


def _meta(key: int) -> dict[str, Any]:
    """Something about the packet that does not stand in it, into the register."""
    return _expression("meta", ("KEY", key), ("DREG", _REGISTER))


def _compare(wanted: bytes, operation: int = _EQUAL) -> dict[str, Any]:
    """Go on only if the register's first bytes are, or are not, these."""
    data = ("DATA", _nested(("NFTA_DATA_VALUE", wanted)))
    return _expression("cmp", ("SREG", _REGISTER), ("OP", operation), data)


def _drop() -> dict[str, Any]:
    verdict = _nested(("NFTA_DATA_VERDICT", _nested(("NFTA_VERDICT_CODE", _DROP))))
    return _expression("immediate", ("DREG", _VERDICT_REGISTER), ("DATA", verdict))


def _native(number: int) -> bytes:
    """A number as registers hold those that come from no packet."""
    return number.to_bytes(4, sys.byteorder)
