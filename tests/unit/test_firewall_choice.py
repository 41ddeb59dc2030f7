"""The setting `firewall`: which backend it means on which host, and what is said where none works."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys

import pytest

from punchd.config import FIREWALLS
from punchd.errors import ConfigError, KernelError
from punchd.kernel import privileges
from punchd.kernel.firewall import Exemption, choose, iptables, nft
from punchd.technique import Capability


class Backend:
    families: frozenset[int] = frozenset({socket.AF_INET})
    limit = 1

    def __init__(self, name: str) -> None:
        self.name = name

    def make(self, exemption: Exemption) -> bool:
        raise AssertionError(exemption)

    def undo(self, exemption: Exemption) -> bool:
        raise AssertionError(exemption)

    def close(self) -> None:
        return


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host where everything works."""
    monkeypatch.setattr(privileges, "held", lambda: Capability.NET_ADMIN | Capability.NET_RAW)
    monkeypatch.setattr(nft, "NftTable", lambda: Backend("nft"))
    monkeypatch.setattr(iptables, "IptablesRules", lambda: Backend("iptables"))
    return monkeypatch


def broken() -> Backend:
    raise KernelError("firewall: broken")


@pytest.mark.parametrize(
    ("setting", "name"), [("auto", "nft"), ("nft", "nft"), ("iptables", "iptables"), ("none", "none")]
)
def test_each_setting_has_its_backend(host: pytest.MonkeyPatch, setting: str, name: str) -> None:
    assert setting in FIREWALLS
    assert choose(setting).name == name


def test_auto_takes_iptables_where_nft_does_not_work(
    host: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host.setattr(nft, "NftTable", broken)
    assert choose("auto").name == "iptables"
    assert "firewall: iptables (firewall: broken)" in caplog.text


def test_auto_takes_none_where_nothing_works_and_says_why(
    host: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host.setattr(nft, "NftTable", broken)
    host.setattr(iptables, "IptablesRules", broken)
    assert choose("auto").name == "none"
    assert caplog.records[-1].levelno == logging.WARNING
    assert "broken; firewall: broken" in caplog.text


@pytest.mark.parametrize("setting", ["nft", "iptables"])
def test_without_the_capability_nothing_is_tried(host: pytest.MonkeyPatch, setting: str) -> None:
    host.setattr(privileges, "held", lambda: Capability.NET_RAW)
    host.delattr(nft, "NftTable")
    host.delattr(iptables, "IptablesRules")
    with pytest.raises(
        KernelError, match=f"^firewall {setting}: needs CAP_NET_ADMIN, which this process does not have$"
    ):
        choose(setting)
    assert choose("auto").name == "none"


def test_without_net_raw_iptables_is_not_tried_but_nft_works(host: pytest.MonkeyPatch) -> None:
    """libiptc opens a raw socket."""
    host.setattr(privileges, "held", lambda: Capability.NET_ADMIN)
    host.delattr(iptables, "IptablesRules")
    with pytest.raises(KernelError, match=r"^firewall iptables: needs CAP_NET_RAW, which this process does not have$"):
        choose("iptables")
    assert choose("auto").name == choose("nft").name == "nft"


@pytest.mark.parametrize("setting", ["", "Auto", "iptables-nft", "x" * 1000])
def test_another_setting_is_refused_in_one_line(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"^firewall: expected one of auto, nft, iptables, none, got ") as caught:
        choose(setting)
    assert len(str(caught.value)) < 200


def test_without_python_iptables_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iptc", None)
    with pytest.raises(KernelError, match=r"python-iptables is not installed \(pip install 'punchd\[iptables\]'\)"):
        iptables._Tables()


def test_python_iptables_is_loaded_only_where_it_is_used() -> None:
    """It takes a quarter of a second, and starts ldconfig."""
    program = (
        "import sys; from punchd.kernel.firewall import choose; choose('none'); "
        "sys.exit('iptc' in sys.modules or 'pyroute2.netlink.nfnetlink' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
