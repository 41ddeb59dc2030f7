"""The commands of a producer: each asks the broker for something, and prints what came of it.

All raise EndedError with the exit code, or ConfigError for what the user got wrong.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from punchd.broker.client import (
    Broker,
    BrokerError,
    Error,
    Event,
    InsecureError,
    Light,
    Reconnecting,
    RefusedError,
    SessionClosed,
    SessionLink,
    Tally,
)
from punchd.broker.client import EndedError as ClosedError
from punchd.errors import ConfigError
from punchd.punch.meeting import authority
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from punchd.session import report
from punchd.session.where import Place, Where

Print = Callable[[str], None]

TALLY_S = 10.0  # for the broker's confirmation


@dataclass(frozen=True, slots=True)
class Wanted:
    """A session that is to be. None: the broker's default. `token_file`: where its admin's token goes."""

    name: str
    streams: tuple[str, ...]
    latency_ms: int | None
    ttl_s: int | None
    token_file: str | None


@asynccontextmanager
async def at(place: Place) -> AsyncIterator[Broker]:
    """A broker, whose errors are those of the command."""
    tls = None if place.ca is None else authority(place.ca)
    with _errors():
        async with Broker.open(place.url, tls=tls, allow_plain=place.allow_plain) as broker:
            yield broker


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except BrokerError as error:
        raise ended(error) from None


def ended(error: BrokerError) -> EndedError:
    """With the exit code of an error."""
    text = str(error)
    match error:
        case RefusedError(code="SESSION_NOT_FOUND"):
            return EndedError(Exit.NOT_ONLINE, text)
        case RefusedError(code=word, retry_after_s=after):
            # It cannot serve anybody now: not what was asked is wrong, nor who asked.
            code = Exit.RENDEZVOUS if word == "SERVER_ERROR" else Exit.REFUSED
            return EndedError(code, text if after is None else f"{text}; try again in {after:.0f} s")
        case ClosedError():
            return EndedError(Exit.BROKEN, text)
        case InsecureError():
            return EndedError(Exit.RENDEZVOUS, f"{text}; see --ca")
        case _:
            return EndedError(Exit.RENDEZVOUS, text)


async def create(place: Place, wanted: Wanted, print_line: Print, *, is_json: bool) -> None:
    """A session; prints what to hand out."""
    with _new_file(wanted.token_file) as save:
        async with at(place) as broker:
            made = await broker.create(
                wanted.name, streams=wanted.streams, latency_ms=wanted.latency_ms, ttl_s=wanted.ttl_s
            )
            try:
                save(made.token)
            except OSError as error:
                await broker.close_session(made.name, made.token)
                why = f"{error.strerror}; session {made.name} is closed again"
                raise ConfigError(f"token file {wanted.token_file}: {why}") from None
    for line in (
        [_line(report.created_members(made, wanted.token_file))] if is_json else report.created(made, wanted.token_file)
    ):
        print_line(line)


async def status(where: Where, print_line: Print, *, is_json: bool) -> None:
    async with at(where.place) as broker:
        seen = await broker.status(where.name, where.token)
    for line in [_line(report.status_members(seen))] if is_json else report.status(seen):
        print_line(line)


async def mint(where: Where, stream: str | None, ttl_s: int | None, print_line: Print, *, is_json: bool) -> None:
    """A token for a peer."""
    async with at(where.place) as broker:
        made = await broker.mint(where.name, where.token, stream=stream, ttl_s=ttl_s)
    try:
        link = SessionLink.parse(made.url)  # what the broker calls itself; we may have come another way
    except ConfigError:
        link = SessionLink(where.place.url, where.name, made.token)
    for line in [_line(report.minted_members(link, made))] if is_json else report.minted(link, made):
        print_line(line)


async def revoke(where: Where, revoked: str, news: News) -> None:
    """Make a token worthless."""
    async with at(where.place) as broker:
        await broker.revoke(where.name, where.token, revoked)
    news.say("revoked", "the token is worthless now", session=where.name)


async def close(where: Where, news: News) -> None:
    async with at(where.place) as broker:
        await broker.close_session(where.name, where.token)
    news.say("closed", f"session {where.name} is closed", session=where.name)


async def tally(where: Where, stream: str, light: Light, news: News) -> None:
    """Set a light, and wait until the broker confirms it."""
    async with at(where.place) as broker, broker.join(where.name, where.token) as joined:
        with trio.move_on_after(TALLY_S):
            await joined.tally(light, stream)
            async for event in joined:
                _check_tally(event)
                if event == Tally(stream, light):
                    return news.say("tally", f"{stream}: tally {light}", stream=stream, state=light.value)
    raise EndedError(Exit.BROKEN, f"the broker did not confirm the light of {stream} within {TALLY_S:g} s")


def _check_tally(event: Event) -> None:
    match event:
        case Error(code, message):
            raise EndedError(Exit.REFUSED, f"the broker objects: {message} ({code})")
        case Reconnecting(reason):
            raise EndedError(Exit.BROKEN, f"the light may not be set: {reason}")
        case SessionClosed():
            raise EndedError(Exit.NOT_ONLINE, report.event(event))
        case _:
            pass


async def watch(where: Where, print_line: Print, clock: Callable[[], str], *, is_json: bool) -> None:
    """Print what happens until the session ends. `clock` gives the time of day for each line."""
    async with at(where.place) as broker, broker.join(where.name, where.token) as joined:
        async for event in joined:
            as_json = {"time": clock(), **report.event_members(event)} if is_json else None
            line = f"{clock()} {report.event(event)}" if as_json is None else _line(as_json)
            # Whoever is to read it may take his time (a pager); the connection and signals do not wait for that.
            await trio.to_thread.run_sync(print_line, line, abandon_on_cancel=True)


@contextlib.contextmanager
def _new_file(path: str | None) -> Iterator[Callable[[str], None]]:
    """A file of mode 0600 for a token, made before there is one, and taken away if none comes."""
    if path is None:
        yield lambda token: None
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"token file {path}: {why}") from None
    is_saved = False

    def save(token: str) -> None:
        nonlocal is_saved
        line = f"{token}\n".encode()
        if os.write(fd, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        is_saved = True

    try:
        yield save
    finally:
        os.close(fd)
        if not is_saved:
            os.unlink(path)


def _line(members: dict[str, Any]) -> str:
    return json.dumps(members, ensure_ascii=False)
