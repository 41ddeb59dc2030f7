"""`punch session`: the session broker's command line, a client of `punchd.broker`.

Which session and token: `where`; the commands of producers: `commands`; what they print: `report`, pure. What starts a
command: `punchd.cli.session`.
"""
