"""Which backend: the setting `firewall = auto | nft | iptables | none`, and what this host offers.

`auto` takes the first that works of nft, iptables, none. nft is first because nothing of it survives the daemon, and
because it loads no legacy tables into hosts that have none. That a backend works is found out by using it: the nft
table is made here and stays, the legacy tables are opened and swept.

Capabilities are looked at first. Without CAP_NET_ADMIN nothing can come of it; python-iptables would take a quarter
of a second to say so, and pyroute2's own `NFTables.table()` waits for ever, because the kernel acknowledges only the
begin message of the batch (nft.py sends its batches itself and so sees the refusal). The kernel asks for nothing else,
but libiptc talks to it through a raw socket: iptables needs CAP_NET_RAW, too, so that it helps only where a firewall
refuses raw packets, not where the capability is missing.

Call it before trio starts and before privileges are dropped: it blocks (times in the package's docstring), importing
python-iptables starts `ldconfig` to find its libraries, and a service user may not open iptables' lock file. Opening
nft only when the first attempt asks would save the 11 ms, but a host without it would be noticed too late for iptables,
and for telling applications at once which techniques there are.
"""

from __future__ import annotations

import logging

from punchd.config import FIREWALLS
from punchd.errors import ConfigError, KernelError
from punchd.kernel import privileges
from punchd.kernel.firewall.exemptions import Backend, Exemptions, Firewall, NoFirewall
from punchd.technique import Capability

log = logging.getLogger(__name__)


def choose(setting: str) -> Firewall:
    """The firewall for this host; the caller closes it. `auto` never fails: it ends with `none` and logs why.

    Raises:
        KernelError: the backend that the setting names does not work here, in one line.
        ConfigError: no such setting.
    """
    match setting:
        case "none":
            return NoFirewall()
        case "nft" | "iptables":
            return Exemptions(_open(setting))
        case "auto":
            return _first_of("nft", "iptables")
        case _:
            raise ConfigError(f"firewall: expected one of {', '.join(FIREWALLS)}, got {setting[:80]!r}")


def _first_of(*names: str) -> Firewall:
    reasons: list[str] = []
    for name in names:
        try:
            backend = _open(name)
        except KernelError as error:
            reasons.append(str(error))
        else:
            log.info("firewall: %s%s", name, f" ({'; '.join(reasons)})" if reasons else "")
            return Exemptions(backend)
    log.warning("firewall: none, low-TTL SYNs depend on raw packets: %s", "; ".join(reasons))
    return NoFirewall()


def _open(name: str) -> Backend:
    if Capability.NET_ADMIN not in privileges.held():
        raise KernelError(f"firewall {name}: needs CAP_NET_ADMIN, which this process does not have")
    if name == "iptables" and Capability.NET_RAW not in privileges.held():
        raise KernelError("firewall iptables: needs CAP_NET_RAW, which this process does not have")
    if name == "nft":
        from punchd.kernel.firewall.nft import NftTable

        return NftTable()
    from punchd.kernel.firewall.iptables import IptablesRules

    return IptablesRules()
