"""`punch session` as a producer uses it, against a broker process over TLS."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from punchd.broker.client import Light, SessionLink
from punchd.broker.messages import Direction
from punchd.cli import session as cli
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from punchd.session import commands, options, tools, where
from tests.unit.broker.fake_broker import CLOSED, TOKEN, Conversation, fake
from tests.unit.session.process import PATIENCE_S, Place, command, place, running

GOOD = "p_e30.AAAA"  # a token in form


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("broker")) as found:
        yield found


def until_it_uses(fd: int, pid: int) -> None:
    """Until a thread of a process waits in a system call whose first argument is that."""
    deadline = time.monotonic() + PATIENCE_S
    while not any(
        task.joinpath("syscall").read_text().split()[1:2] == [hex(fd)] for task in Path(f"/proc/{pid}/task").iterdir()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pasted(text: str) -> list[tools.Choice]:
    """What the commands that stand in a text do as they are, whatever is installed."""
    found = []
    for line in text.splitlines():
        if line.strip().startswith("punch session "):
            given = cli.arguments().parse_args(shlex.split(line)[2:])
            assert SessionLink.parse(given.session).token
            found.append(options.read(given, lambda program: program).choice)
    return found


def test_create_prints_what_to_hand_out_and_the_urls_work(at: Place) -> None:
    made = at.punch("create", "show", "--stream", "wide", "--stream", "close", "--latency", "250", "--ttl", "600")
    assert (made.returncode, made.stderr) == (0, "")
    first, *_ = made.stdout.splitlines()
    assert re.fullmatch(r"session show: 2 streams, latency 250 ms, until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", first)
    urls = list(dict.fromkeys(re.findall(r"https://\S+#t=p_[\w.-]+", made.stdout)))
    assert len(urls) == 3
    assert [line.partition(",")[0] for line in made.stdout.splitlines() if "receives:" in line] == ["wide", "close"]
    assert [one.direction for one in pasted(made.stdout)] == [Direction.SENDER, Direction.RECEIVER] * 2
    for url in urls:
        seen = at.punch("status", url)
        assert seen.returncode == 0
        assert re.fullmatch(
            r"show: WAITING, 0 of 4 peers, latency 250 ms, until .* UTC\n  wide   WAITING 0/2\n  close  WAITING 0/2\n",
            seen.stdout,
        )
    assert at.punch("close", urls[0]).stderr == "punch: session show is closed\n"
    gone = at.punch("status", urls[0])
    assert gone.returncode == Exit.NOT_ONLINE
    assert gone.stderr.endswith("no open session has this name (404 SESSION_NOT_FOUND)\n")


def test_a_token_comes_from_a_url_a_file_standard_input_or_the_environment(at: Place, tmp_path: Path) -> None:
    made = at.create("ways")
    token = made["admin"]["token"]
    file = tmp_path / "token"
    file.write_text(f"{token}\nwhat it is for\n")
    for words, more in (
        ((made["admin"]["url"],), {}),
        ((made["admin"]["url"].replace("#t=", "?t="),), {}),
        (("ways", "--token-file", str(file)), {}),
        (("ways", "--token-file", "-"), {"stdin": f"{token}\n"}),
        (("ways",), {"PUNCH_TOKEN": token}),
        (("ways", "--broker", at.url, "--ca", str(at.ca)), {"PUNCH_TOKEN": token, "PUNCH_BROKER": "http://x"}),
    ):
        done = at.punch("status", *words, "--json", **more)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["session"] == "ways"


def test_the_admins_token_can_go_to_a_file_that_only_its_owner_reads(at: Place, tmp_path: Path) -> None:
    file = tmp_path / "admin"
    made = at.punch("create", "saved", "--token-file", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().strip() not in made.stdout
    assert f"--token-file {file}" in made.stdout
    assert at.punch("close", "saved", "--token-file", str(file)).returncode == 0
    again = at.punch("create", "saved", "--token-file", str(file))
    assert (again.returncode, again.stderr) == (2, f"punch: token file {file}: File exists\n")
    other = tmp_path / "other"
    assert at.punch("create", "_", "--token-file", str(other)).returncode == 2
    assert at.punch("create", "saved", "--token-file", str(other)).returncode == 0  # so `again` has made none
    refused = at.punch("create", "saved", "--token-file", str(tmp_path / "third"))
    assert refused.returncode == Exit.REFUSED
    assert not (tmp_path / "third").exists()


def test_a_token_that_cannot_be_saved_leaves_no_session_that_nobody_can_close(at: Place, tmp_path: Path) -> None:
    file = tmp_path / "admin"
    words = command("create", "unsaved", "--token-file", str(file))
    full = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *words]
    done = subprocess.run(full, env=at.environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    expected = f"punch: token file {file}: File too large; session unsaved is closed again\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert not file.exists()
    assert at.create("unsaved")["session"] == "unsaved"


def test_more_tokens_are_made_and_made_worthless(at: Place, tmp_path: Path) -> None:
    admin = at.create("more", "--stream", "wide", "--stream", "close")["admin"]["url"]
    text = at.punch("tokens", admin, "--stream", "wide", "--ttl", "60").stdout
    assert re.match(
        r"wide, until .* UTC, to send or to receive:\n  punch session join 'https://localhost:\d+/s/more#", text
    )
    assert [one.direction for one in pasted(text)] == [Direction.SENDER, Direction.RECEIVER]
    made = json.loads(at.punch("tokens", admin, "--stream", "wide", "--json").stdout)
    assert SessionLink.parse(made["url"]).token == made["token"]
    assert at.punch("status", made["url"]).returncode == 0
    file = tmp_path / "worthless"
    file.write_text(made["token"])
    done = at.punch("tokens", admin, "--revoke", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "punch: the token is worthless now\n")
    assert at.punch("status", made["url"]).returncode == Exit.REFUSED
    unclear = at.punch("tokens", admin)
    assert unclear.returncode == Exit.REFUSED
    assert "stream: expected a name" in unclear.stderr


def test_watch_tells_a_line_for_each_event_until_the_session_ends(at: Place) -> None:
    admin = at.create("live", "--stream", "wide")["admin"]["url"]
    with running(at, "watch", admin) as people, running(at, "watch", "--json", admin) as programs:
        assert re.fullmatch(r"\d\d:\d\d:\d\d WAITING, 0 of 2 peers: wide WAITING 0/2", people.line("WAITING"))
        first = json.loads(programs.line("session"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
        assert first == {
            "event": "session", "state": "WAITING", "streams": {"wide": {"state": "WAITING", "peers": 0}},
            "connected": 0, "total": 2,
        }  # fmt: skip
        lit = at.punch("tally", admin, "wide", "program")
        assert (lit.returncode, lit.stderr) == (0, "punch: wide: tally program\n")
        assert people.line("tally").endswith(" wide: tally program")
        assert json.loads(programs.line("tally"))["state"] == "program"
        assert "program" in at.punch("status", admin).stdout
        assert at.punch("close", admin).returncode == 0
        assert people.line("closed").endswith(" closed: by an admin")
        assert people.end() == programs.end() == (0, "")


def test_a_token_that_is_waited_for_on_standard_input_is_no_reason_not_to_end(at: Place) -> None:
    admin = at.create("waits")["admin"]["url"]
    for words in (("tokens", admin, "--revoke", "-"), ("status", "waits", "--token-file", "-")):
        with subprocess.Popen(command(*words), env=at.environment(), stdin=subprocess.PIPE) as waiting:
            until_it_uses(0, waiting.pid)
            waiting.send_signal(signal.SIGINT)
            try:
                assert waiting.wait(5) in (Exit.INTERRUPTED, -signal.SIGINT)
            finally:
                waiting.kill()


@pytest.mark.parametrize(
    ("status", "code", "left"),
    [
        (503, "SERVER_ERROR", Exit.RENDEZVOUS),  # its store is away, or it stops
        (500, "SERVER_ERROR", Exit.RENDEZVOUS),
        (503, "SESSION_FULL", Exit.REFUSED),
        (429, "RATE_LIMITED", Exit.REFUSED),
        (404, "SESSION_NOT_FOUND", Exit.NOT_ONLINE),
    ],
)
async def test_a_broker_that_cannot_serve_now_is_another_exit_code_than_one_that_refuses(
    status: int, code: str, left: Exit
) -> None:
    async def refuse(broker: Conversation) -> None:
        await broker.read_http()
        body = json.dumps({"error": code, "message": "not now", "code": code}).encode()
        await broker.answer(status, body, Punch_Version="1.0.0", Retry_After="7")

    async with fake(refuse) as url:
        session = where.Where(where.Place(url, None, allow_plain=False), "show", TOKEN)
        with pytest.raises(EndedError) as failure:
            await commands.status(session, print, is_json=False)
    assert failure.value.code == left
    assert "not now" in str(failure.value)
    assert ("; try again in 7 s" in str(failure.value)) is (left is not Exit.NOT_ONLINE)


async def test_a_light_in_a_session_that_ends_is_not_waited_for() -> None:
    async def ends(broker: Conversation) -> None:
        await broker.accept()
        await broker.hear()
        await broker.say(CLOSED)
        await broker.hear()

    async with fake(ends) as url:
        session = where.Where(where.Place(url, None, allow_plain=False), "show", TOKEN)
        with pytest.raises(EndedError) as failure:
            await commands.tally(session, "wide", Light.PROGRAM, News(print, False, True))
    assert (failure.value.code, str(failure.value)) == (Exit.NOT_ONLINE, "closed: by an admin")


def test_watch_is_ended_by_a_signal(at: Place) -> None:
    admin = at.create("signal")["admin"]["url"]
    with running(at, "watch", admin) as watcher:
        watcher.line("WAITING")
        watcher.process.send_signal(signal.SIGINT)
        assert watcher.end() == (Exit.INTERRUPTED, "")


def test_watch_is_ended_by_a_signal_also_when_nobody_reads_what_it_says(at: Place) -> None:
    admin = at.create("unread")["admin"]["url"]
    reader, writer = os.pipe()
    os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)))
    with subprocess.Popen(command("watch", admin), env=at.environment(), stdout=writer) as watcher:
        os.close(writer)
        until_it_uses(1, watcher.pid)
        watcher.send_signal(signal.SIGTERM)
        try:
            assert watcher.wait(10) == Exit.TERMINATED
        finally:
            watcher.kill()
            os.close(reader)


def test_watch_tells_of_a_lost_broker_and_ends_when_the_session_is_gone(tmp_path: Path) -> None:
    with place(tmp_path) as own:
        admin = own.create("short")["admin"]["url"]
        with running(own, "watch", admin) as watcher:
            watcher.line("WAITING")
            own.process.terminate()
            assert "shutting down; again in " in watcher.line("connection lost")
            assert "Connection refused; again in " in watcher.line("Connection refused")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "punch session: the following arguments are required: COMMAND"),
        (("create", "a b"), 2, "NAME: expected a name of 1 to 64 letters, digits, '.', '_' and '-', got 'a b'"),
        (("create", "x", "--stream", "_"), 2, "--stream: expected a name"),
        (("create", "x", "--stream", "a", "--stream", "a"), 2, "--stream: expected at most 16 distinct names"),
        (("create", "x", "--ttl", "0"), 2, "--ttl: expected a whole number from 1 to 86400, got 0"),
        (("create", "x", "--latency", "9"), 2, "--latency: expected a whole number from 20 to 8000, got 9"),
        (("create", "x", "--ttl", "soon"), 2, "argument --ttl: invalid int value: 'soon'"),
        (("create", "x", "--broker", "ftp://x"), 2, "broker URL 'ftp://x': expected https://HOST:PORT"),
        (("create", "x", "--broker", f"https://x/s/show#t={GOOD}"), 2, "broker URL 'https://x/s/show': expected"),
        (("create", "x", "--broker", f"https://me:{GOOD}@x"), 2, "broker URL 'https://***@x': expected https://"),
        (("create", "x", "--broker", "http://192.0.2.1"), 2, "http://192.0.2.1: expected https://"),
        (("create", "x", "--broker", "https://127.0.0.1:1"), 3, "broker https://127.0.0.1:1: Connection refused"),
        (("create", "x", "--ca", "/nonexistent"), 2, "ca /nonexistent: No such file or directory"),
        (("create", "x", "--token-file", "/nonexistent/x"), 2, "token file /nonexistent/x: No such file or directory"),
        (("status", "show"), 2, "no token: expected a session URL with #t=TOKEN, --token-file FILE, or PUNCH_TOKEN"),
        (("status", "show", "--token-file", "/nonexistent"), 2, "token file /nonexistent: No such file or directory"),
        (("status", "show", "--token-file", "/dev/null"), 2, "token file /dev/null: expected a token"),
        (("status", "https://x/show#t=p_a.b"), 2, "session URL: expected https://HOST/s/NAME#t=TOKEN"),
        (("status", "https://x/s/a%20b#t=p_a.b"), 2, "session URL: expected a name"),
        (("status", "https://x/s/a?t=p_a.b#t=p_a.c"), 2, "session URL: expected one token, got several"),
        (("status", "https://x/s/show#t=%0a"), 2, "session URL: expected a token"),
        (("status", f"https://x/s/a#t={GOOD}", "--broker", "https://y"), 2, "--broker: expected the session URL's"),
        (("status", f"URL/s/show#t={GOOD}"), 5, "(401 AUTH_FAILED)"),
        (("tally", f"URL/s/show#t={GOOD}", "wide", "on"), 2, "argument state: invalid choice: 'on'"),
        (("tally", f"URL/s/show#t={GOOD}", "wide", "off"), 5, "(401 AUTH_FAILED)"),
        (("watch", f"URL/s/show#t={GOOD}"), 5, "(401 AUTH_FAILED)"),
        (("watch", "PEER"), 2, "watch: expected the admin's token, got a peer's"),
        (("close", "PEER"), 2, "close: expected the admin's token, got a peer's"),
        (("tally", "ADMIN", "nope", "off"), 5, "the broker objects: stream: the session has none of that name"),
        (("tokens", "ADMIN", "--stream", "nope"), 5, "(404 STREAM_NOT_FOUND)"),
        (("tokens", "ADMIN", "--revoke", "/nonexistent"), 2, "token file /nonexistent: No such file or directory"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_line(at: Place, words: tuple[str, ...], code: int, says: str) -> None:
    if "ADMIN" in words or "PEER" in words:
        made = at.create("mistakes")
        urls = {"ADMIN": made["admin"]["url"], "PEER": made["streams"]["default"]["url"]}
        words = tuple(urls.get(word, word) for word in words)
    done = at.punch(*(word.replace("URL/", f"{at.url}/") for word in words))
    try:
        assert (done.returncode, done.stdout) == (code, "")
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("punch")
        assert GOOD not in done.stderr
    finally:
        if words and words[1:] and "/s/mistakes" in words[1]:
            assert at.punch("close", urls["ADMIN"]).returncode == 0


def test_a_stranger_in_the_brokers_place_is_not_believed(at: Place, tmp_path: Path) -> None:
    done = at.punch("create", "x", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 3
    assert re.search(r"its certificate cannot be trusted: .*; see --ca\n$", done.stderr)


def test_without_a_broker_it_says_how_to_name_one(at: Place) -> None:
    done = at.punch("create", "x", PUNCH_BROKER="")
    expected = "punch: no broker: expected --broker URL, PUNCH_BROKER, or the configuration file\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_errors_are_json_when_that_is_asked_for(at: Place) -> None:
    done = at.punch("status", "show", "--json")
    assert json.loads(done.stderr) | {"text": ""} == {"event": "error", "code": 2, "text": ""}
