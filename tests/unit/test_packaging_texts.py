"""What the packages' texts say: configuration files, manual pages, completions against settings and command lines."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from punchd import config, knobs
from punchd.broker import settings as broker
from punchd.control.policy import Rule
from punchd.rendezvous import settings as rendezvous
from texts import completion, manual, markdown
from texts.commands import commands, options, parsers
from texts.conffile import FILES, File, explanation, knobs_of, render

ROOT = Path(__file__).resolve().parents[2]
MAN = ROOT / "packaging" / "man"
MODULES: dict[str, Any] = {"punchd": config, "punchd-rendezvous": rendezvous, "punchd-broker": broker}
PROGRAMS = parsers()

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.program)
each_program = pytest.mark.parametrize("program", PROGRAMS)


def parsed(file: File, text: str) -> Any:
    return MODULES[file.program].parse(text.encode(), file.name)


def uncommented(text: str) -> str:
    """With every value that was commented out, and without those that the package sets."""
    lines = [line for line in text.splitlines() if line.startswith("[") or re.match(r"#[a-z0-9-]+ = ", line)]
    return "\n".join(line.removeprefix("#") for line in lines)


# --- configuration files --------------------------------------------------------------------------------------------


@each_file
def test_a_configuration_file_names_every_knob_once_with_its_explanation(file: File) -> None:
    text = render(file)
    for one in knobs_of(file.settings):
        default = getattr(file.settings, one.name)
        inner = [item.name for item in fields(default)] if is_dataclass(default) else [one.name]
        for name in inner:
            assert len(re.findall(rf"^#{knobs.key(name)} = ", text, re.MULTILINE)) == (
                0 if name in ("public_url", "secret_file") else 1
            ), name
    assert max(map(len, text.splitlines())) <= 110


@each_file
def test_what_a_configuration_file_says_is_the_default_is_the_default(file: File) -> None:
    found = parsed(file, uncommented(render(file)))
    examples = {name.replace("-", "_"): None for name in file.examples}
    named = {"ttl_was_named": False, "techniques_were_named": False} if file.program == "punchd" else {}
    assert replace(found, **examples, **named) == file.settings


@each_file
def test_a_configuration_file_as_installed_sets_what_it_means_to_and_starts(file: File) -> None:
    found = parsed(file, render(file))
    chosen = {
        name.replace("-", "_"): tuple(value) if isinstance(value, list) else value
        for name, (value, _) in file.chosen.items()
    }
    assert found == replace(file.settings, **chosen)
    if file.program != "punchd":
        MODULES[file.program].check(found)


# --- manual pages -----------------------------------------------------------------------------------------------------


@each_program
def test_a_manual_page_has_every_option_of_its_program(program: str) -> None:
    (source,) = MAN.glob(f"{program}.[18].rst")
    text = manual.page(source)
    for parser in (PROGRAMS[program], *(made for _, made in commands(PROGRAMS[program]).values())):
        for option in options(parser):
            said = ", ".join(f"**{name}**" + (f" *{option.value}*" if option.value else "") for name in option.names)
            assert said.replace("_", "\\_") in text, option.names
            assert option.help, option.names
    for command in commands(PROGRAMS[program]):
        assert f"\n{program} {command}\n---" in text


@each_file
def test_a_manual_page_has_every_knob_of_its_configuration_file(file: File) -> None:
    text = manual.page(MAN / f"{file.program}.toml.5.rst")
    for one in knobs_of(file.settings):
        default = getattr(file.settings, one.name)
        for name in [item.name for item in fields(default)] if is_dataclass(default) else [one.name]:
            assert f"\n**{knobs.key(name)}**\n" in text


def test_the_daemons_page_has_every_key_of_a_rule_of_the_policy() -> None:
    text = manual.page(MAN / "punchd.toml.5.rst")
    for one in fields(Rule):
        assert f"\n**{knobs.key(one.name)}**\n    {manual._escaped(explanation(one))}" in text


def test_the_protocols_page_has_all_of_its_document_without_its_markup() -> None:
    text = manual.page(MAN / "punchd-protocol.7.rst")
    document = manual.PROTOCOL.read_text()
    for line in re.findall(r"^## (.*)", document, re.MULTILINE):
        assert f"\n{line.upper()}\n===" in text
    for code in re.findall(r"^\| `([a-z-]+)` \|", document, re.MULTILINE):
        assert f"\n``{code}``" in text
    assert "](" not in text
    assert "```" not in text


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("See [there](a.md#b).", "See there."),
        ("`a_` and *b* and **c\n  `d`**", "``a_`` and *b* and **c d**"),
        ("5 * 3 `|`, a_ b", "5 \\* 3 ``|``, a\\_ b"),
        ("x`a`y", "x\\ ``a``\\ y"),
        ("text\n- one\n- two", "text\n\n- one\n- two"),
        ("```sh\n# `no` markup\n```", "\n::\n\n    # `no` markup\n"),
        ("| a | b |\n|---|---|\n| `x` | y |", "\n``x``\n    y\n"),
        ("| a | b | c |\n|---|---|---|\n| x | | `p\\|q` |", "\nx\n    *c*: ``p|q``\n\n"),
    ],
)
def test_markdown_becomes_restructuredtext(source: str, wanted: str) -> None:
    assert markdown.to_rst(source).rstrip("\n") == wanted.rstrip("\n")


# --- completions ----------------------------------------------------------------------------------------------------


def completed(program: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    script = completion.bash(program, PROGRAMS[program]) + (
        'compopt() { :; }\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n'
        f'_{program.replace("-", "_")}\nprintf "%s\\n" "${{COMPREPLY[@]}}"\n'
    )
    done = subprocess.run(["bash", "-c", script, "-", program, *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("program", "words", "offered"),
    [
        ("punchd", ["--log-l"], ["--log-level"]),
        ("punchd", ["--log-level", ""], list(knobs.LOG_LEVELS)),
        ("punchd", ["--firewall", "n"], ["nft", "none"]),
        ("punchd", ["--stun", ""], []),
        ("punchd-broker", ["--config", "/etc/debian_v"], ["/etc/debian_version"]),
        ("punch", ["li"], ["listen"]),
        ("punch", ["listen", "--ke"], ["--keep"]),
        ("punch", ["connect", "--ke"], []),
        ("punch", ["session", "wa"], ["watch"]),
        ("punch", ["session", "create", "--lat"], ["--latency"]),
    ],
)
def test_bash_completes(program: str, words: list[str], offered: list[str]) -> None:
    assert completed(program, *words) == offered


@each_program
def test_zsh_reads_its_completions(program: str) -> None:
    text = completion.zsh(program, PROGRAMS[program])
    assert text.startswith(f"#compdef {program}\n")
    for option in options(PROGRAMS[program]):
        assert f"{option.names[-1]}[" in text
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n", "/dev/stdin"], input=text, text=True, check=True)
