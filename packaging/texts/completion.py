"""Completions for bash and zsh."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from texts.commands import Option, commands, options


def bash(program: str, parser: argparse.ArgumentParser) -> str:
    """A file for /usr/share/bash-completion/completions."""
    function = "_" + program.replace("-", "_")
    lines = [
        f"# Completion of {program} for bash, made from its command line.",
        f"{function}() {{",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}",
        "    COMPREPLY=()",
    ]
    below = commands(parser)
    everything = {
        option.names[-1]: option for one in (parser, *(made for _, made in below.values())) for option in options(one)
    }
    lines += _bash_values(list(everything.values()))
    words = _names(parser)
    if below:
        lines += ["    local words=${COMP_WORDS[*]:1:COMP_CWORD-1}", "    case $words in"]
        lines.append(f"    '') {_bash_words([*_firsts(below), *words])} ;;")
        lines += [f"    {name}) {_bash_words(inner)} ;;" for name, inner in _groups(below).items()]
        lines += [f"    '{name}' | '{name} '*) {_bash_words(_names(made))} ;;" for name, (_, made) in below.items()]
        lines.append("    esac")
    else:
        lines.append(f"    {_bash_words(words)}")
    return "\n".join([*lines, "}", f"complete -F {function} {program}"]) + "\n"


def zsh(program: str, parser: argparse.ArgumentParser) -> str:
    """A file for /usr/share/zsh/vendor-completions."""
    lines = [f"#compdef {program}", f"# Completion of {program} for zsh, made from its command line."]
    below = commands(parser)
    if not below:
        return "\n".join([*lines, _zsh_arguments(parser)]) + "\n"
    lines += ["local curcontext=$curcontext state line", "local -a commands=("]
    helps = {name: text for name, (text, _) in below.items()}
    lines += [f"    {_quoted(f'{name}:{helps[name]}' if name in helps else name)}" for name in _firsts(below)]
    lines += [")", f"{_zsh_arguments(parser, '-C')} \\", "    '1:command:->command' '*::argument:->argument' && return"]
    lines += ["case $state in", "command) _describe command commands ;;", "argument)", "    case $words[1] in"]
    groups = _groups(below)
    lines += [
        f"    {name}) _arguments '1:command:({' '.join(inner)})' '*:: :_default' ;;" for name, inner in groups.items()
    ]
    lines += [f"    {name}) {_zsh_arguments(made)} ;;" for name, (_, made) in below.items() if " " not in name]
    return "\n".join([*lines, "    esac ;;", "esac"]) + "\n"


def _names(parser: argparse.ArgumentParser) -> list[str]:
    return [name for option in options(parser) for name in option.names]


def _firsts(below: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.split()[0] for name in below))


def _groups(below: Mapping[str, Any]) -> dict[str, list[str]]:
    """First word to second words, of commands that have two."""
    found: dict[str, list[str]] = {}
    for first, *second in (name.split() for name in below):
        if second:
            found.setdefault(first, []).append(second[0])
    return found


def _bash_words(words: list[str]) -> str:
    return f'mapfile -t COMPREPLY < <(compgen -W "{" ".join(words)}" -- "$cur")'


def _bash_values(found: list[Option]) -> list[str]:
    """What may stand behind an option that takes a value."""
    lines = ["    case $prev in"]
    for option in found:
        if option.value is None:
            continue
        action = "return"
        if option.is_file:
            action = 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return'
        elif option.choices:
            action = f"{_bash_words(list(option.choices))}; return"
        lines.append(f"    {' | '.join(option.names)}) {action} ;;")
    return [*lines, "    esac"]


def _zsh_arguments(parser: argparse.ArgumentParser, flags: str = "") -> str:
    specs = []
    for option in options(parser):
        text = option.help.replace("[", "\\[").replace("]", "\\]")
        value = ""
        if option.value is not None:
            values = "_files" if option.is_file else f"({' '.join(option.choices)})" if option.choices else " "
            value = f":{option.value.replace(':', chr(92) + ':')}:{values}"
        for name in option.names:
            specs.append(_quoted(f"{'*' if option.repeats else ''}{name}[{text}]{value}"))
    return " \\\n    ".join([f"_arguments {flags}".rstrip(), *specs])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
