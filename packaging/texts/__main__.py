"""`python3 -m texts OUT WHEELS MAN`: write all texts of the packages into the directory OUT."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from punchd import __version__
from texts import completion, conffile, manual, sbom
from texts.commands import parsers


def main(out: Path, wheels: Path, man: Path) -> None:
    date = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC).date().isoformat()
    for name in ("etc", "man", "bash", "zsh"):
        (out / name).mkdir(parents=True)
    for file in conffile.FILES:
        (out / "etc" / file.name).write_text(conffile.render(file))
    for source in sorted(man.glob("*.rst")):
        (out / "man" / source.stem).write_text(manual.roff(manual.page(source), date))
    for program, parser in parsers().items():
        (out / "bash" / program).write_text(completion.bash(program, parser))
        (out / "zsh" / f"_{program}").write_text(completion.zsh(program, parser))
    requirements = (wheels.parent / "requirements.txt").read_text()
    (out / "sbom.cdx.json").write_text(sbom.document(__version__, requirements, wheels))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
