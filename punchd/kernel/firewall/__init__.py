"""Firewall exemptions: while an attempt runs, the kernel does not hear that its low-TTL SYN died on the way.

Theory of operation. The classic low-TTL `connect()` sends a SYN that opens the own NAT and dies before the peer's. The
router where it dies says so (ICMP time exceeded), the kernel believes that the peer cannot be reached, and the socket
leaves SYN_SENT with EHOSTUNREACH. No socket option prevents it (measured on 6.18: IP_RECVERR, TCP_USER_TIMEOUT and
IP_MTU_DISCOVER do not). A rule on the input hook does: drop time exceeded when the *quoted* packet is TCP and comes
from our port. Everybody else's traceroutes and errors pass.

Most techniques need none of this, since a SYN that was sent raw with another sequence number is not believed either
(RFC 5927 §4.1). Exemptions are for the classic form, which is used where raw packets cannot be sent (`tcp_nutss`).

| file | topic |
|---|---|
| exemptions.py | `Firewall`; scopes that undo themselves, for trio |
| choice.py | which backend: `auto`, `nft`, `iptables`, `none` |
| nft.py, messages.py | nftables tables that the kernel removes with their owner; the messages, pure |
| guard.py | not an exemption: a rule against the daemon itself, that nothing leaves in somebody else's name |
| iptables.py, rules.py | tagged rules in the legacy tables; their text, pure |
| lock.py, owner.py | the lock that iptables' writers share; whether the process that left a rule still lives |

| measured on 6.18, 2 cores, medians | nft | iptables |
|---|---|---|
| start | 11 ms (and 80 ms for pyroute2, if it is the first to need it) | 240 ms, for python-iptables |
| one exemption made, undone: the system calls | 0.10 ms, 0.09 ms | 0.9 ms, 0.6 ms |
| the same as a trio task sees it | 0.20 ms, 0.18 ms | 1.2 ms, 0.9 ms |
| beside 1,000 and 10,000 foreign rules of iptables | no change | 1.8 ms, 16 ms |
| while `nft -f` loads 60,000 elements | up to 75 ms | not measured |
| after SIGKILL | nothing stays, 30 of 30 | rules stay until the next start |

Why scopes are asynchronous: both kinds of change are quick, but either can be held up by what else is on the host
(see the table; and a long `iptables-restore` holds iptables' lock for seconds). So the system call is made in a
worker thread, and the wait for the lock is trio's and can be cancelled. Undoing is shielded and bounded: exemptions.py.

Two daemons in one network namespace do not disturb each other: exemptions only ever add up. nft tables are named
after their process, iptables' rules carry its tag. (One table name for all would have made the owner flag a lock
that the second daemon loses, for no gain: whether a second daemon may run is the control socket's question.)

Left out: everything else that a firewall can do. punchd opens no port and accepts no packet that the host's own
rules refuse; a host that drops the peer's SYN-ACK drops it still.

Source: RFC 792, RFC 4443 §3.3, RFC 5927; nf_tables.h (NFT_TABLE_F_OWNER, Linux 5.12);
xt_u32(8) in iptables-extensions(8).
"""

from punchd.kernel.firewall.choice import choose
from punchd.kernel.firewall.exemptions import Backend, Exemption, Exemptions, Firewall, NoFirewall

__all__ = ["Firewall", "choose", "Exemption", "Exemptions", "NoFirewall", "Backend"]
