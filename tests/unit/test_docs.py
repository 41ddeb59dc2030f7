"""The documentation says what the code does: settings, options, codes, numbers, examples and dialogues are compared."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pytest

from punchd import config
from punchd.cli.punchd import arguments
from punchd.config import Config, Limits
from punchd.control.answers import Error, Ok, OkHello, Progress, Stage, format_answer, parse_answer
from punchd.control.fields import INITIATE_OPTIONS, PROBE_OPTIONS, RESPOND_OPTIONS, Rules
from punchd.control.lines import MAX_LINE, VERBS
from punchd.control.requests import format_request, parse_request
from punchd.errors import Code, ProtocolError
from punchd.wire import probe
from punchd.wire import token as tokens
from tests import dialogues

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
PROTOCOL = (DOCS / "line-protocol.md").read_text()
TOKENS = (DOCS / "tokens.md").read_text()
CONFIGURATION = (DOCS / "configuration.md").read_text()
RULES = Rules((*tokens.TECHNIQUE_NUMBERS, dialogues.PLUGIN))
SPOKEN = re.compile(r"[AB]([<>]) (\S.*?)(  \[fd\])?")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    """The cells of all lines of tables."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# --- dialogues -------------------------------------------------------------------------------------------------------


def test_the_dialogues_are_what_the_code_says() -> None:
    assert dialogues.TARGET.read_text() == dialogues.document(), "write it anew: .venv/bin/python -m tests.dialogues"


def spoken(language: str) -> Iterator[tuple[str, str, bool, str]]:
    """Direction, line, whether a descriptor came, and the answer that follows (or nothing), for all pages."""
    for page in PAGES:
        for block in blocks(page.read_text(), language):
            lines = [match for line in block.splitlines() if (match := SPOKEN.fullmatch(line))]
            for match, following in zip(lines, [*lines[1:], None], strict=True):
                answer = following[2] if following is not None and following[1] == "<" else ""
                yield match[1], match[2], match[3] is not None, answer


def test_each_line_of_a_dialogue_is_one_of_the_protocol_and_fits() -> None:
    requests = answers = 0
    for direction, line, descriptor, _ in [*spoken("dialogue"), *spoken("refused")]:
        assert 1 <= len(line.encode("ascii")) <= MAX_LINE
        if direction == "<":
            answer = parse_answer(line)
            assert format_answer(answer) == line
            assert descriptor == isinstance(answer, Ok)
            answers += 1
    for direction, line, _, _ in spoken("dialogue"):
        if direction == ">":
            assert format_request(parse_request(line.encode(), RULES)) == line
            requests += 1
    assert requests > 30
    assert answers > 60


def test_each_line_that_is_refused_gets_the_code_of_its_fault() -> None:
    faults: list[tuple[str, Code, str]] = []
    for direction, line, _, following in spoken("refused"):
        try:
            if direction == ">":
                parse_request(line.encode(), RULES)
        except ProtocolError as error:
            answer = parse_answer(following)
            assert isinstance(answer, (Error, Progress))
            faults.append((line, error.code, answer.code if isinstance(answer, Error) else answer.detail))
    assert [fault for fault in faults if fault[1] != fault[2]] == []
    assert {code for _, code, _ in faults} >= {
        Code.BAD_MESSAGE,
        Code.BAD_VERSION,
        Code.BAD_TECHNIQUE,
        Code.BAD_ADDRESS,
        Code.BAD_PORT,
        Code.BAD_OPTION,
        Code.BAD_TOKEN,
    }


def test_every_block_of_lines_is_one_that_is_checked() -> None:
    for page in PAGES:
        text = page.read_text()
        checked = "".join((*blocks(text, "dialogue"), *blocks(text, "refused")))
        for line in re.findall(r"^[AB][<>] .*$", text, re.MULTILINE):
            assert line in checked, f"{page.name}: {line}"


def test_the_dialogues_show_every_kind_of_token_and_answer() -> None:
    answers = [parse_answer(line) for direction, line, _, _ in spoken("dialogue") if direction == "<"]
    assert {type(answer) for answer in answers} >= {Ok, OkHello, Progress, Error}
    relayed = [one.detail for one in answers if isinstance(one, Progress) and one.stage == Stage.RELAY]
    assert {tokens.decode(text).kind for text in relayed} == set(tokens.Kind)


# --- the line protocol -----------------------------------------------------------------------------------------------


def section(text: str, title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def test_every_code_is_explained_and_no_other() -> None:
    errors = {name for row in rows(section(PROTOCOL, "Error codes"))[1:] for name in names_in(row[0])}
    reasons = {
        name for row in rows(section(PROTOCOL, "Reasons in `failed` and `ignored`"))[1:] for name in names_in(row[0])
    }
    assert errors | reasons == set(Code)
    assert set(Code) - errors == {Code.PEER_SKIP, Code.SUPERSEDED, Code.REFUSED, Code.UNSUPPORTED}


def test_every_option_is_explained_with_the_requests_that_take_it() -> None:
    taken = {"probe": PROBE_OPTIONS, "initiate": INITIATE_OPTIONS, "respond": RESPOND_OPTIONS}
    told = {names_in(row[0])[0]: row[1].split(", ") for row in rows(section(PROTOCOL, "Options"))[1:]}
    keys = {key for options in taken.values() for key in options}
    assert told == {key: [verb for verb, options in taken.items() if key in options] for key in keys}


def test_every_request_stage_and_mapping_stands_in_the_grammar() -> None:
    [grammar] = blocks(PROTOCOL, "abnf")
    literals = set(re.findall(r'%s"([^"]+)"', grammar))
    assert literals >= {*VERBS, *Stage, *tokens.TECHNIQUE_NUMBERS}
    defined = re.findall(r"^([a-z-]+|SEP) +=", grammar, re.MULTILINE)
    assert len(defined) == len(set(defined))
    prose = re.sub(r';.*|%s?"[^"]*"|"[^"]*"|%x[0-9A-F-]+', "", grammar)
    core = {"LF", "ALPHA", "DIGIT", "IPv4address", "IPv6address"}
    assert set(re.findall(r"[A-Za-z][A-Za-z0-9-]*", prose)) == set(defined) | core


# --- tokens ----------------------------------------------------------------------------------------------------------


def bytes_told(block: str) -> bytes:
    """The hexadecimal digits at the start of each line, two spaces before the explanation."""
    return bytes.fromhex("".join(line.split("  ")[0] for line in block.splitlines()))


def test_the_examples_of_tokens_are_what_the_codec_makes() -> None:
    examples = blocks(TOKENS, "token")
    assert len(examples) == 2
    for example in examples:
        text, told = example.split("\n\n", 1)
        assert tokens.encode(tokens.decode(text)) == text
        assert text in dialogues.TARGET.read_text()
        decoded = tokens._unwrap(text)
        assert decoded == bytes_told(told)


def test_the_example_of_a_datagram_is_what_the_codec_makes() -> None:
    [example] = blocks(TOKENS, "datagram")
    key, told = example.split("\n\n", 1)
    made = probe.Probe(probe.Type.PROBE, probe.Role.RESPONDER, bytes.fromhex("7f3a9c02d1e84b55"))
    assert probe.encode(made, bytes.fromhex(key.split()[1])) == bytes_told(told)
    assert f"UDP, {probe.SIZE} bytes" in TOKENS


def test_numbers_of_kinds_reasons_and_techniques_are_those_of_the_codec() -> None:
    told = {(number, name) for number, name, *_ in rows(TOKENS)}
    wanted = {
        *((one.value, one.name) for one in (*tokens.Kind, *tokens.Farewell)),
        *((number, name) for name, number in tokens.TECHNIQUE_NUMBERS.items()),
    }
    for number, name in wanted:
        spelled = name.lower().replace("_", " ")
        assert (str(number), spelled) in told
    assert f"Tokens, layout {tokens.LAYOUT}" in TOKENS
    assert f"{tokens.MIN_CHARACTERS} to {tokens.MAX_CHARACTERS} characters" in TOKENS


# --- configuration ---------------------------------------------------------------------------------------------------


def default_of(knob: Field[Any]) -> str:
    assert knob.default is not MISSING
    if knob.default is None:
        return "none"
    return f"`{json.dumps(knob.default)}`"


def knobs(table: type[Config] | type[Limits]) -> Iterator[Field[Any]]:
    for knob in fields(table):
        if "doc" in knob.metadata and knob.name != "limits":
            yield knob


@pytest.mark.parametrize(("title", "table"), [("Settings", Config), ("Limits", Limits)])
def test_every_knob_is_told_with_its_default_range_and_reason(title: str, table: type[Config] | type[Limits]) -> None:
    told = {names_in(row[0])[0]: row[1:] for row in rows(section(CONFIGURATION, title))[1:] if names_in(row[0])}
    assert list(told) == [config.key(knob.name) for knob in knobs(table)]
    for knob in knobs(table):
        default, reach, unit, what = told[config.key(knob.name)]
        assert default == default_of(knob)
        assert unit
        assert what.startswith(knob.metadata["doc"]), knob.name
        if knob.metadata["least"] is not None:
            assert reach == f"{knob.metadata['least']}–{knob.metadata['most']}"  # noqa: RUF001 (typography)


def test_choices_are_told() -> None:
    told = {row[0]: row[2] for row in rows(section(CONFIGURATION, "Settings"))}
    assert told["`firewall`"] == ", ".join(config.FIREWALLS)
    assert told["`log-level`"] == ", ".join(config.LOG_LEVELS)
    assert told["`log-format`"] == ", ".join(config.LOG_FORMATS)


def test_the_example_of_a_configuration_is_one() -> None:
    example, _policy = blocks(CONFIGURATION, "toml")
    parsed = config.parse(example.encode(), "docs/configuration.md")
    unset = [knob.name for knob in knobs(Config) if f"\n{config.key(knob.name)} = " not in f"\n{example}"]
    assert unset == []
    assert parsed.limits.attempts_per_connection == 20


def test_the_command_line_is_told_option_by_option() -> None:
    told = [names_in(row[0])[0] for row in rows(section(CONFIGURATION, "Command line")) if names_in(row[0])]
    real = [
        f"{action.option_strings[-1]} {action.metavar}" if action.nargs != 0 else action.option_strings[-1]
        for action in arguments()._actions
        if action.help != argparse.SUPPRESS
    ]
    assert sorted(told) == sorted(real)


# --- all pages -------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> Iterable[str]:
    return re.findall(r"\]\((?!https?://)([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_dev_that_a_page_names_is_one(page: Path) -> None:
    usage = (ROOT / "dev").read_text().split("<<'END'\n", 1)[1].split("\nEND\n", 1)[0]
    known = re.findall(r"^  ([a-z]+)", usage, re.MULTILINE)
    assert known
    assert set(re.findall(r"\./dev ([a-z]+)", page.read_text())) <= set(known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_in_docs_examples_or_tests_is_there(page: Path) -> None:
    named = re.findall(r"\b(?:docs|examples|tests)/[\w/-]+\.(?:md|py|c)\b", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
