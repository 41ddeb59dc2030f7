"""The techniques that come with punchd, one a file, found through entry points."""
