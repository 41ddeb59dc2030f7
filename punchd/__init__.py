"""punchd: connected sockets between programs behind NATs. ARCHITECTURE.md is the map of this package."""

__version__ = "0.1.0"
