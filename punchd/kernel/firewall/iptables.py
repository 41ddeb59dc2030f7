"""The iptables backend: one tagged rule an exemption, in the legacy tables, for hosts without nftables.

Theory of operation. The kernel takes a legacy table as a whole, in one system call: a change is there or it is not,
even when the daemon is killed in the middle. What it does not have is an owner: rules outlive who made them. So each
rule carries a tag (rules.py), and whoever starts removes those of dead processes (owner.py), and only those.

The rule goes to the top of INPUT: hosts accept related ICMP errors early, and the first verdict counts.

What python-iptables leaves to us:

- the lock of all writers (lock.py), held from reading a table to writing it;
- autocommit off and a fresh copy for each change: `Table` is one per process, and by default writes an old copy back
  when it is refreshed;
- a writer who ignores the lock: if the number of rules changed in between, the kernel refuses (EAGAIN) or, when it
  changed between libiptc's two calls, has made the change and says EINVAL. So look again, and try again;
- its types: it has none, so it is kept in this file, behind `_Tables`;
- the network namespace: that of the thread at each change. The daemon has only one.

The sweep looks for tags in the bytes of the rules, 46 ms for 10,000 of them, and makes no object of each. Whether a
rule is there is asked by deleting it from the copy, which libiptc does in C.

Source: python-iptables 1.2.0; libiptc; linux/netfilter_ipv4/ip_tables.h.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from punchd.errors import KernelError
from punchd.kernel.firewall import lock, rules
from punchd.kernel.firewall.exemptions import RETRY_S, Exemption
from punchd.kernel.firewall.owner import Owner, is_dead, this_process

LIMIT = 256  # rules of ours; the kernel walks them for each packet, and nobody needs more ports at a time
START_PATIENCE_S = 5.0  # for the lock, before the leftovers are removed
_TRIES = 5  # in a row against a writer who ignores the lock, 1-10 ms each; then as if the lock were held
_CHAIN = "INPUT"
_AGAIN = os.strerror(errno.EAGAIN)  # python-iptables hands errors on as text only

log = logging.getLogger(__name__)


class IptablesRules:
    """Rules in the legacy filter tables. Implements `Backend`. Removes what dead daemons left behind.

    Raises:
        KernelError: python-iptables, the privilege, the lock file or the kernel's IPv4 table is missing, or the
            lock is held for longer than START_PATIENCE_S.
    """

    name = "iptables"
    families: frozenset[int] = frozenset()
    limit = LIMIT

    def __init__(self, lock_path: str = lock.PATH) -> None:
        self._owner = this_process()
        self._tables = _Tables()
        self._lock = lock.XtablesLock(lock_path)
        try:
            self._start()
        except BaseException:
            self._lock.close()
            raise

    def make(self, exemption: Exemption) -> bool:
        return self._locked(lambda: self._tables.set(exemption, self._owner, present=True))

    def undo(self, exemption: Exemption) -> bool:
        return self._locked(lambda: self._tables.set(exemption, self._owner, present=False))

    def close(self) -> None:
        self._lock.close()

    def _start(self) -> None:
        deadline = time.monotonic() + START_PATIENCE_S
        while not self._locked(self._open_and_sweep):
            if time.monotonic() > deadline:
                raise KernelError(f"firewall iptables: another program has held the lock for {START_PATIENCE_S:g} s")
            time.sleep(RETRY_S)

    def _open_and_sweep(self) -> None:
        self._tables.probe(socket.AF_INET)
        families: set[int] = {socket.AF_INET}
        try:
            self._tables.probe(socket.AF_INET6)
            families.add(socket.AF_INET6)
        except KernelError as error:
            log.info("%s; no exemptions for IPv6", error)
        self.families = frozenset(families)
        for family in families:
            for exemption, owner in list(self._tables.tagged(family)):
                if is_dead(owner) and self._tables.set(exemption, owner, present=False):
                    log.info("firewall iptables: removed a rule that process %d left behind", owner.pid)

    def _locked(self, change: Callable[[], object]) -> bool:
        if not self._lock.acquire():
            return False
        try:
            change()
        except BlockingIOError:
            return False
        finally:
            self._lock.release()
        return True


class _Tables:
    """python-iptables, as far as it is used. Whoever calls holds the lock."""

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it imports distutils, and has old escapes in its patterns
                self._iptc: Any = importlib.import_module("iptc")
        except ModuleNotFoundError:
            raise KernelError(
                "firewall iptables: python-iptables is not installed (pip install 'punchd[iptables]')"
            ) from None
        except Exception as error:  # foreign code at import: a missing libip4tc becomes an AttributeError
            raise KernelError(f"firewall iptables: python-iptables does not load: {error!r}") from error
        self._errors = (self._iptc.IPTCError, self._iptc.XTablesError)

    def probe(self, family: int) -> None:
        """Raises KernelError where the kernel or the privilege for the table is missing."""
        self._open(family).close()

    def set(self, exemption: Exemption, owner: Owner, *, present: bool) -> bool:
        """Make the rule be there, or not be there. False: it was so before.

        Raises:
            BlockingIOError: somebody who ignores the lock changes the table all the time.
            KernelError: refused; the rule is as it was.
        """
        reason = ""
        for number in range(_TRIES + 1):
            table = self._open(exemption.family)
            try:
                if not self._prepare(table, exemption, owner, present=present):
                    return number > 0  # a try that seemed to fail did it
                if number < _TRIES:
                    table.commit()
                    return True
            except self._errors as error:
                reason = _text(error)
            finally:
                table.close()
        if _AGAIN in reason:
            raise BlockingIOError(reason)
        raise KernelError(f"firewall iptables: port {exemption.port}: {reason}")

    def _prepare(self, table: Any, exemption: Exemption, owner: Owner, *, present: bool) -> bool:
        """Change the copy of the table. False: nothing needs to be changed."""
        chain = self._iptc.Chain(table, _CHAIN)
        rule = self._rule(exemption, owner)
        try:
            chain.delete_rule(rule)  # exactly this rule; libiptc compares every byte
            was_there = True
        except self._iptc.IPTCError:
            was_there = False  # the only reason to fail, for a rule that is well-formed
        if present and not was_there:
            chain.insert_rule(rule)
        return present != was_there

    def tagged(self, family: int) -> Iterator[tuple[Exemption, Owner]]:
        """What the tags in the chain say."""
        table = self._open(family)
        try:
            entry = table.first_rule(_CHAIN)
            while entry:
                data = ctypes.string_at(ctypes.addressof(entry), entry.next_offset)
                if (found := rules.find_tag(data, family)) is not None:
                    yield found
                entry = table.next_rule(entry)
        finally:
            table.close()

    def _open(self, family: int) -> Any:
        """The table with a fresh copy of what is in the kernel; close it."""
        kind = self._iptc.Table if family == socket.AF_INET else self._iptc.Table6
        try:
            table = kind(kind.FILTER, autocommit=False)
            table.refresh()
        except self._errors as error:
            version = 4 if family == socket.AF_INET else 6
            raise KernelError(f"firewall iptables: open the IPv{version} table: {_text(error)}") from None
        return table

    def _rule(self, exemption: Exemption, owner: Owner) -> Any:
        text = rules.rule(exemption, owner)
        rule = self._iptc.Rule() if exemption.family == socket.AF_INET else self._iptc.Rule6()
        rule.protocol = text.protocol
        for name, option, value in text.matches:
            setattr(rule.create_match(name), option, value)
        rule.create_target("DROP")
        return rule


def _text(error: Exception) -> str:
    """Its messages hold the C library's as `b'…'`."""
    return str(error).replace("b'", "").replace("'", "").replace('b"', "").replace('"', "")
