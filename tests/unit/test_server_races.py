"""Line protocol §10, the race rules, as far as they concern the daemon's shell; and races of its own.

Rule 4 (the application dies between `ok` written and read) and rule 7 (a partial `sendmsg`) are in test_fdpass.py,
rule 5 (the daemon restarts) is in tests/netns/test_kill.py, too.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from punchd.wire import token as tokens
from punchd.wire.token import Card, Kind
from tests.unit.daemon_fixture import CARD, NUMBERS, PEER, Application, offer, server

NONCE = b"12345678"


def initiate(attempt_id: str, technique: str, *options: str) -> str:
    return "|".join((f"initiate|{attempt_id}|{technique}|{PEER}|40000", *options))


def ignored(line: str) -> list[str]:
    words = line.split("|")
    assert words[4] == "ignored", line
    return [words[2], words[5]]


# --- rule 1 --------------------------------------------------------------------------------------------------------


async def test_rule_1_an_offer_of_a_later_round_after_ok_starts_anew(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(f"respond|r|{offer('wins', 1, NONCE)}")
            await application.until("ok|r|")
            await application.send(f"respond|r|{offer('wins', 2, NONCE)}")
            await application.until("progress|r|2|wins|trying|")
            await application.until("ok|r|")
            assert len(application.fds) == 2


# --- rule 2 --------------------------------------------------------------------------------------------------------


async def test_rule_2_a_token_that_is_delivered_twice_is_stale(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            first = offer("waits", 1, NONCE)
            await application.send(f"respond|r|{first}")
            await application.until_relay("r")
            await application.send(f"respond|r|{first}")
            assert ignored(await application.line()) == ["1", "stale"]
            assert running.techniques["waits"].started == 1


async def test_rule_2_a_token_that_is_delivered_twice_in_one_read_is_stale(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            first = offer("waits", 1, NONCE)
            await application.send(f"respond|r|{first}", f"respond|r|{first}")
            lines = [await application.until("progress|r|") for _ in range(3)]
            assert sorted(line.split("|")[4] for line in lines) == ["ignored", "relay", "trying"]
            assert lines[0].split("|")[4] == "trying"
            assert running.techniques["waits"].started == 1


async def test_rule_2_of_two_swapped_rounds_the_second_to_come_is_stale(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(f"respond|r|{offer('waits', 2, NONCE)}")
            await application.until_relay("r")
            await application.send(f"respond|r|{offer('silent', 1, NONCE)}")
            assert ignored(await application.line()) == ["2", "stale"]
            assert running.techniques["silent"].started == 0


async def test_a_second_round_that_comes_in_the_same_read_as_the_first_is_followed(tmp_path: Path) -> None:
    """A side channel that is polled delivers several tokens at once."""
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(f"respond|r|{offer('silent', 1, NONCE)}", f"respond|r|{offer('waits', 2, NONCE)}")
            assert await application.line() == "progress|r|1|silent|trying|-"
            assert (await application.line()).startswith("progress|r|1|silent|failed|superseded")
            assert await application.line() == "progress|r|2|waits|trying|-"


async def test_a_note_that_comes_in_the_same_read_as_its_offer_is_heard(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            note = offer("waits", 1, NONCE, Kind.NOTE)
            await application.send(f"respond|r|{offer('waits', 1, NONCE)}", f"respond|r|{note}", f"respond|r|{note}")
            await application.until("progress|r|1|waits|trying|")
            line = await application.until("progress|r|1|waits|ignored|")
            assert ignored(line) == ["1", "stale"], "the second copy of the note, and only that"
            assert [line for line in await application.nothing_for(0.1) if "ignored" in line] == []


async def test_an_abort_in_the_same_read_as_its_offer_ends_the_attempt(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            abort = offer("waits", 1, NONCE, Kind.ABORT)
            await application.send(f"respond|r|{offer('waits', 1, NONCE)}", f"respond|r|{abort}")
            await application.until("error|r|peer-abort|")


async def test_a_doubled_offer_after_ok_is_stale_and_starts_nothing(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application, await running.connect() as other:
            first = offer("wins", 1, NONCE)
            await application.send(f"respond|r|{first}")
            await application.until("ok|r|")
            for line in (f"respond|r|{first}", f"respond|s|{first}"):
                await application.send(line)
                assert (await application.line()).split("|")[2] == "stale"
            await other.send(f"respond|r|{first}")
            assert (await other.line()).startswith("error|r|stale|")
            assert running.techniques["wins"].started == 1


async def test_a_doubled_offer_in_one_read_with_the_one_that_wins_never_wins_twice(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            first = offer("wins", 1, NONCE)
            await application.send(*[f"respond|r|{first}"] * 5)
            lines = await application.nothing_for(0.3)
            assert len([line for line in lines if line.startswith("ok|r|")]) == 1
            assert running.techniques["wins"].started == 1
            assert len(application.fds) == 1


async def test_an_offer_that_runs_under_another_id_is_a_duplicate(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application, await running.connect() as other:
            first = offer("waits", 1, NONCE)
            await application.send(f"respond|r|{first}")
            await application.until_relay("r")
            for holder in (application, other):
                await holder.send(f"respond|s|{first}")
                assert (await holder.line()).startswith("error|s|duplicate-attempt|")
            assert running.techniques["waits"].running == 1


async def test_a_foreign_token_for_a_running_id_is_ignored_as_bad(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(f"respond|r|{offer('waits', 1, NONCE)}")
            await application.until_relay("r")
            await application.send(f"respond|r|{offer('waits', 2, b'somebody')}")
            assert ignored(await application.line()) == ["1", "bad-token"]
            assert running.techniques["waits"].running == 1


async def test_an_offer_may_be_followed_again_after_it_was_cancelled(tmp_path: Path) -> None:
    """In one read: the cancelled attempt is still being undone when its offer comes again."""
    async with server(tmp_path) as running:
        with await running.connect() as application:
            first = offer("lingers", 1, NONCE)
            await application.send(f"respond|r|{first}")
            await application.until_relay("r")
            await application.send("cancel|r", f"respond|r|{first}")
            await application.until("error|r|cancelled|")
            assert await application.line() == "progress|r|1|lingers|trying|-"


async def test_the_first_token_of_an_id_must_be_an_offer(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            for kind in (Kind.ANSWER, Kind.NOTE, Kind.SKIP, Kind.ABORT):
                await application.send(f"respond|r|{offer('waits', 1, NONCE, kind)}")
                assert (await application.line()).startswith("error|r|bad-token|")


# --- rule 3: test_server_ending.py, too ---------------------------------------------------------------------------


async def test_rule_3_cancel_and_ok_in_the_same_moment_give_one_verdict(tmp_path: Path) -> None:
    """Whichever comes first wins, and a hole that came too late is closed."""
    outcomes = set()
    async with server(tmp_path) as running:
        for turn in range(30):
            with await running.connect() as application:
                technique = running.techniques["slow"]
                technique.go = trio.Event()
                await application.send(initiate("a", "slow"))
                await application.until_relay("a")
                if turn % 3 == 0:
                    technique.go.set()
                    await application.send("cancel|a")
                elif turn % 3 == 1:
                    await application.send("cancel|a")
                    technique.go.set()
                else:
                    technique.go.set()
                    await trio.lowlevel.checkpoint()
                    await application.send("cancel|a")
                lines = await _until_quiet(application)
                verdicts = [line for line in lines if line.startswith(("ok|", "error|"))]
                outcomes.add(tuple(line.split("|")[0 if line.startswith("ok") else 2] for line in verdicts))
                assert len(application.fds) == len([line for line in verdicts if line.startswith("ok|")])
        await running.settle(lambda: running.running == 0)
    assert outcomes <= {("ok", "unknown-id"), ("cancelled",)}
    assert outcomes, "nothing was raced"


async def _until_quiet(application: Application) -> list[str]:
    """All answers that belong to the requests so far: to one more request, whose answer is known."""
    await application.send("cancel|end")
    lines = []
    while not (line := await application.line()).startswith("error|end|"):
        lines.append(line)
    return lines


# --- rule 5 --------------------------------------------------------------------------------------------------------


async def test_rule_5_a_token_of_a_daemon_that_is_gone_costs_a_timeout_and_no_more(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """An answer to an attempt that this daemon does not know, and an offer that nobody follows up."""
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(f"respond|c|{offer('waits', 1, NONCE, Kind.ANSWER)}")
            assert (await application.line()).startswith("error|c|bad-token|")
            await application.send(f"respond|r|{offer('waits', 1, NONCE)}|timeout=3000")
            await application.until("error|r|timeout|")
            assert running.running == 0


# --- rule 6 --------------------------------------------------------------------------------------------------------


async def test_rule_6_glare_is_two_attempts_that_do_not_mind_each_other(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as left, await running.connect() as right:
            await left.send(initiate("mine", "waits"))
            await right.send(initiate("mine", "waits"))
            of_left, of_right = await left.token("mine"), await right.token("mine")
            assert of_left.nonce != of_right.nonce
            await left.send(f"respond|yours|{tokens.encode(of_right)}")
            await right.send(f"respond|yours|{tokens.encode(of_left)}")
            to_left, to_right = await right.token("yours"), await left.token("yours")
            assert (to_left.kind, to_right.kind) == (Kind.ANSWER, Kind.ANSWER)
            await left.send(f"respond|mine|{tokens.encode(to_left)}")
            await right.send(f"respond|mine|{tokens.encode(to_right)}")
            assert await _until_quiet(left) == []
            assert running.techniques["waits"].running == 4


async def test_an_application_that_hands_in_its_own_offer_is_told(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("a", "waits"))
            own = (await application.until_relay("a")).split("|")[5]
            await application.send(f"respond|b|{own}", f"respond|a|{own}")
            assert (await application.line()).startswith("error|b|duplicate-attempt|")
            assert ignored(await application.line()) == ["1", "bad-token"]
            assert running.techniques["waits"].running == 1


# --- rounds over two daemons ------------------------------------------------------------------------------------------


async def test_a_skip_moves_the_initiator_on_and_an_abort_ends_it(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("a", "waits,waits"))
            first = await application.token("a")
            for kind in (Kind.SKIP, Kind.ABORT):
                token = tokens.Token(
                    kind, first.nonce, 1 if kind is Kind.SKIP else 2, NUMBERS["waits"], None, tokens.Farewell.TIMEOUT
                )
                await application.send(f"respond|a|{tokens.encode(token)}")
                if kind is Kind.SKIP:
                    assert (await application.until("progress|a|1|waits|failed|")).split("|")[5] == "peer-skip"
                    await application.until_relay("a")
            await application.until("error|a|peer-abort|")
            assert await _until_quiet(application) == []


@pytest.mark.parametrize(
    ("options", "code"),
    [("peer=203.0.113.8", "token-mismatch"), ("local=2001:db8::1", "token-mismatch"), ("tech=breaks", None)],
)
async def test_an_offer_is_held_against_what_the_application_knows(
    tmp_path: Path, options: str, code: str | None
) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(f"respond|r|{offer('waits', 1, NONCE)}|{options}")
            if code is not None:
                assert (await application.line()).startswith(f"error|r|{code}|")
            else:
                assert (await application.token("r")).farewell is tokens.Farewell.NOT_AGREED
            assert running.techniques["waits"].started == 0


async def test_a_token_that_names_an_address_which_is_no_target_is_refused(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            for address, code in (("127.0.0.1", "bad-address"), ("10.0.0.1", "bad-address"), ("192.0.2.1", None)):
                card: Card = replace(CARD, address=ip_address(address))
                token = tokens.encode(tokens.Token(Kind.OFFER, NONCE, 1, NUMBERS["waits"], card))
                await application.send(f"respond|r|{token}")
                assert (await application.line()).startswith(f"error|r|{code or 'bad-address'}|")
            assert running.techniques["waits"].started == 0


# --- stopping ------------------------------------------------------------------------------------------------------


async def test_a_stop_in_the_same_moment_as_requests_never_leaves_an_attempt_without_a_verdict(tmp_path: Path) -> None:
    """Whatever was started says `shutdown` or its own verdict before the end of the file."""
    for turn in range(20):
        directory = tmp_path / str(turn)
        directory.mkdir()
        async with server(directory) as running:
            with await running.connect() as application, await running.connect() as late:
                await application.send(*(initiate(f"a{number}", "waits") for number in range(turn % 8)))
                await late.send(initiate("b", "waits"))
                for _ in range(turn % 5):
                    await trio.lowlevel.checkpoint()
                running.stop.set()
                for each in (application, late):
                    lines = await each.rest()
                    begun = {line.split("|")[1] for line in lines if line.startswith("progress|")}
                    ended = [line.split("|")[1] for line in lines if line.startswith("error|")]
                    assert begun <= set(ended)
                    assert len(ended) == len(set(ended))
                assert running.running == 0
