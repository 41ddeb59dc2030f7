"""What the packages' texts are made of: configuration files, manual pages, completions and the list of what is bundled.

All of them come from the settings, the command lines and the pinned libraries themselves, when a package is built: no
second copy can go stale. `python3 -m texts OUT WHEELS MAN` writes them (packaging/debian/rules).
"""
