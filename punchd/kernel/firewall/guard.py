"""The guard: the kernel itself sees to it that no packet leaves this host in somebody else's name.

punchd injects segments into its own stack whose source is the peer's address. Whether such a packet stays inside
depends on its destination being an address of this host *in the moment in which it is sent*; the check before it is a
moment older, and addresses go (a lease that ends, a tunnel that closes). Then a packet with a forged source would take
the default route. And checks have bugs.

So a rule on the output hook drops what sockets of the daemon's user send through any device but `lo` unless its source
is an address of this host. Its own packets have such a source always; injected ones go through `lo`. The raw socket's
send fails with EPERM then, which an attempt reports as `refused`; `nft list ruleset` shows how often that was.

It knows the daemon's packets by the user of their socket. That user should be the daemon's alone: for uid 0 there is
no guard, because root's other programs (a transparent proxy, for instance) may have reasons.

What it does not see: packet sockets (AF_PACKET), which stand below the output hook. punchd's sniffer is one, and only
reads.

| measured on 6.18, 2 cores | |
|---|---|
| start, with pyroute2 loaded already | 1.6 ms |
| added to a packet of the daemon's user, 2.8 us by itself | 0.35 us |
| added to a packet of others, through a device | 0.2 us |
| added to a packet of others, through `lo` | 0.03 us |

Source: nft(8), "fib"; linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import logging

from punchd.errors import KernelError
from punchd.kernel import privileges
from punchd.kernel.firewall import messages
from punchd.kernel.firewall.nft import OwnerTable
from punchd.technique import Capability

_WHAT = "no guard against packets with a foreign source"

log = logging.getLogger(__name__)


def post(uid: int) -> OwnerTable | None:
    """The guard over packets of `uid`, in this network namespace; the caller closes it. Never fails.

    None where it is not needed, since raw packets cannot be sent, or where it cannot stand, and then the log says why.
    Call it with the privileges that the daemon keeps.
    """
    held = privileges.held()
    if Capability.NET_RAW not in held:
        return None
    if uid == 0:
        log.warning("%s: it knows the daemon by its user, and this is uid 0; make a user _punchd", _WHAT)
        return None
    if Capability.NET_ADMIN not in held:
        log.warning("%s: it needs CAP_NET_ADMIN, which this process does not have", _WHAT)
        return None
    try:
        table = OwnerTable(lambda name: messages.guard_table(name, uid))
    except KernelError as error:
        log.warning("%s: %s", _WHAT, error)
        return None
    log.info("guard against packets with a foreign source: nft table %s", table.name)
    return table
