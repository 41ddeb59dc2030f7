"""The Markdown of docs/, and no more of it than they use, as reStructuredText.

Tables become lists of definitions, which read better at 80 columns; links become their text.
"""

from __future__ import annotations

import re

_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
_SPAN = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\*([^*]+)\*")
_STRONG = re.compile(r"\*\*[^*]+\*\*")  # may go over the end of a line
_CELL = re.compile(r"(?<!\\)\|")


def to_rst(text: str) -> str:
    """A document without its title."""
    lines: list[str] = []
    blocks = iter(_STRONG.sub(lambda strong: re.sub(r"\s*\n\s*", " ", strong[0]), text).splitlines())
    table: list[list[str]] = []
    for line in blocks:
        if line.startswith("|"):
            table.append([cell.strip().replace("\\|", "|") for cell in _CELL.split(line)[1:-1]])
            continue
        if table:
            lines += _definitions(table)
            table = []
        if line.startswith("```"):
            lines += ["", "::", ""]
            while not (inner := next(blocks)).startswith("```"):
                lines.append(f"    {inner}")
            lines.append("")
        elif heading := re.match(r"(#+) (.*)", line):
            if len(heading[1]) > 1:
                title = heading[2].upper() if len(heading[1]) == 2 else heading[2]
                lines += ["", _inline(title), "=-~"[len(heading[1]) - 2] * (len(_inline(title)) + 1), ""]
        else:
            item = re.match(r"( *(?:- |[0-9]+\. )?)(.*)", line)
            if item is not None and item[1].strip() and lines and lines[-1] and not _is_item(lines[-1]):
                lines.append("")
            lines.append(line if item is None else item[1] + _inline(item[2], starts=not item[1]))
    return "\n".join([*lines, *_definitions(table)])


def _is_item(line: str) -> bool:
    return re.match(r" |- |[0-9]+\. ", line) is not None


def _definitions(table: list[list[str]]) -> list[str]:
    if not table:
        return []
    head, _, *rows = table
    lines = [""]
    for first, *others in rows:
        lines.append(_inline(first, starts=True))
        if len(others) == 1:
            lines.append(f"    {_inline(others[0], starts=True) or '-'}")
        else:
            said = [
                f"*{name}*: {_inline(cell, starts=True)}" for name, cell in zip(head[1:], others, strict=True) if cell
            ]
            for one in said:
                lines += [f"    {one}", ""]
        lines.append("")
    return lines


def _inline(text: str, *, starts: bool = False) -> str:
    """Code, emphasis and links. `starts`: what looks like a list's item or the like at the start is none."""
    text = _LINK.sub(r"\1", text)
    parts: list[str] = []
    end = 0
    for span in _SPAN.finditer(text):
        parts.append(_plain(text[end : span.start()]))
        code, strong, emphasis = span.groups()
        marked = (
            f"``{code}``" if code else f"**{_plain(strong.replace('`', ''))}**" if strong else f"*{_plain(emphasis)}*"
        )
        before = "\\ " if span.start() and text[span.start() - 1] not in " (\"'-" else ""
        after = "\\ " if span.end() < len(text) and text[span.end()] not in " .,:;!?)\"'-" else ""
        parts.append(before + marked + after)
        end = span.end()
    parts.append(_plain(text[end:]))
    made = "".join(parts)
    return "\\" + made if starts and re.match(r"[-+*] |\.\. |[0-9]+\. ", made) else made


def _plain(text: str) -> str:
    return re.sub(r"([\\*`|]|_(?=\W|$))", r"\\\1", text)
