"""The NAT laboratory."""

from .host import Host, Node
from .kinds import KINDS, MATRIX, kind
from .laboratory import Laboratory, LaboratoryError, RunningSite
from .model import Engine, Filtering, InboundSyn, Link, Mapping, Nat, Ports, Side, Site, TcpTracking, Unsolicited
from .trace import Trace

__all__ = [
    "KINDS",
    "MATRIX",
    "kind",
    "Nat",
    "Mapping",
    "Filtering",
    "Ports",
    "Unsolicited",
    "InboundSyn",
    "TcpTracking",
    "Engine",
    "Link",
    "Side",
    "Site",
    "Laboratory",
    "LaboratoryError",
    "RunningSite",
    "Host",
    "Node",
    "Trace",
]
