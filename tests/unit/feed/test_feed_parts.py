"""The pure parts of `punch media`: words, pieces, the end, what is told."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.cli import media as cli
from punchd.errors import ConfigError
from punchd.feed import ending, options, report
from punchd.feed.options import ReceiveOptions, SendOptions
from punchd.feed.pieces import DEFAULT_SIZE, PACKET, SYNC, Cutter
from punchd.media.statistics import Received, Sent

PAGE = (Path(__file__).parents[3] / "docs" / "media.md").read_text()
ROOM = 1174
SENT = Sent(2.0, 1_000_000, 900, 800, 0, 8e6, 1200, "gso+numpy")
RECEIVED = Received(2.0, 1_000_000, 900, 790, 7, 3, 1, 2, 0, 5, 0.001, 0.0125, 0.0, "gro+recvmmsg+numpy")


def parsed(*words: str) -> argparse.Namespace:
    return cli.arguments().parse_args(words)


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "source", "address"),
    [
        (["punch1x"], None, "punch1x"),
        (["-", "punch1x"], None, "punch1x"),
        (["file", "punch1x"], "file", "punch1x"),
        (["--direct", "h:1"], None, None),
        (["file", "--direct", "h:1"], "file", None),
    ],
)
def test_the_last_word_is_the_address_unless_the_place_is_named(
    words: list[str], source: str | None, address: str | None
) -> None:
    found = options.read_send(parsed("send", *words))
    assert found == (SendOptions(source, 20e6, None, 1200), address)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "send: expected an ADDRESS or --direct"),
        (["a", "b", "c"], "send: expected FILE and ADDRESS, got 2 files"),
        (["a", "b", "--direct", "h:1"], "send: expected FILE, got 2 files"),
        (["", "--direct", "h:1"], "FILE: expected a name or -, got ''"),
        (["a", "--size", "0"], "--size: expected a whole number from 1 to 67108864, got 0"),
        (["a", "--datagram", "42"], "--datagram: expected a whole number from 43 to 65507, got 42"),
        *(
            (["a", "--rate", rate], "--rate: expected bit/s such as")
            for rate in ("", "fast", "8m", "1e6", "999", "9999G", "8M ", "inf")
        ),
    ],
)
def test_words_of_send_that_cannot_be_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        options.read_send(parsed("send", *words))


def test_rates_have_the_units_of_the_trade() -> None:
    assert [options.read_rate(text) for text in ("1000", "800k", "8M", "1.5G")] == [1e3, 800e3, 8e6, 1.5e9]


def test_words_of_receive() -> None:
    assert options.read_receive(parsed("receive")) == ReceiveOptions(None, 0.2, 30.0)
    found = options.read_receive(parsed("receive", "f", "--latency", "0", "--idle", "5"))
    assert found == ReceiveOptions("f", 0.0, 5.0)
    for words in (["--latency", "-1"], ["--latency", "5001"], ["--idle", "0"]):
        with pytest.raises(ConfigError, match="expected a whole number"):
            options.read_receive(parsed("receive", *words))


def test_a_place_is_host_and_port() -> None:
    assert options.read_place("[2001:db8::1]:7") == ("2001:db8::1", 7)
    with pytest.raises(ConfigError, match="--direct: expected HOST:PORT, got '7000'"):
        options.read_place("7000")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["send", "x", "no-address", "--rendezvous", "http://x"], "ADDRESS: "),
        (["send", "--direct", "x"], "--direct: expected HOST:PORT"),
        (["receive", "--rendezvous", "no-url"], "rendezvous URL 'no-url': expected"),
        (["receive", "/no/such/directory/file", "--direct", "127.0.0.1:9"], "No such file or directory"),
        (["send", "/no/such/file", "--direct", "127.0.0.1:0"], "--direct: expected HOST:PORT"),
        (["send", "/no/such/file", "--direct", "127.0.0.1:47011"], "/no/such/file: No such file or directory"),
        (["send", "/", "--direct", "127.0.0.1:47011"], "/: expected a file, got a directory"),
        (["send", "--direct", "192.0.2.1:5"], "--direct 192.0.2.1:5: Cannot assign requested address"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_exit_code_2(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert cli.main([*words, "-q"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert message in line


# --- pieces ----------------------------------------------------------------------------------------------------------


def fed(cutter: Cutter, portions: list[bytes]) -> list[tuple[bytes, int]]:
    cuts = [cutter.feed(one) for one in [*portions, b""]]
    return [(cut.data, cut.size) for cut in cuts if cut.data]


@given(
    st.binary(max_size=2000), st.lists(st.integers(1, 600), max_size=8), st.booleans(), st.sampled_from([None, 1, 400])
)
def test_all_that_was_read_is_sent_in_its_order(data: bytes, cuts: list[int], is_ts: bool, size: int | None) -> None:
    if is_ts:
        data = b"".join(bytes([SYNC]) + data[at : at + 187].ljust(187, b"p") for at in range(0, len(data), 187))
    portions: list[bytes] = []
    rest = data
    for cut in cuts:
        portions, rest = [*portions, rest[:cut]], rest[cut:]
    sent = fed(Cutter(size, ROOM), [one for one in [*portions, rest] if one])
    assert b"".join(one for one, _ in sent) == data
    if is_ts and len(data) > PACKET:
        assert all(size % PACKET == 0 for _, size in sent)
        assert all(len(one) % PACKET == 0 for one, _ in sent)


def test_mpeg_ts_is_cut_into_a_datagrams_worth_of_packets_and_other_input_into_16_kib() -> None:
    packets = (bytes([SYNC]) + bytes(187)) * 20
    assert [size for _, size in fed(Cutter(None, ROOM), [packets])] == [6 * PACKET]
    assert [size for _, size in fed(Cutter(1000, ROOM), [packets])] == [5 * PACKET]
    assert [size for _, size in fed(Cutter(100, ROOM), [packets])] == [PACKET]
    assert [size for _, size in fed(Cutter(None, ROOM), [b"x" * 3760])] == [DEFAULT_SIZE]
    assert [size for _, size in fed(Cutter(None, ROOM), [bytes([SYNC]) * 188])] == [DEFAULT_SIZE]
    assert [size for _, size in fed(Cutter(None, ROOM), [packets[:PACKET] + bytes(500)])] == [DEFAULT_SIZE]


def test_mpeg_ts_is_recognised_also_if_it_comes_packet_by_packet() -> None:
    packet = bytes([SYNC]) + bytes(187)
    assert [size for _, size in fed(Cutter(None, ROOM), [packet] * 4)] == [6 * PACKET] * 3


def test_half_a_packet_at_the_end_is_sent_as_well() -> None:
    data = (bytes([SYNC]) + bytes(187)) * 7 + b"G"
    for portions in ([data], [data[:300], data[300:]]):
        assert b"".join(one for one, _ in fed(Cutter(None, ROOM), portions)) == data


def test_live_packets_do_not_wait_for_more() -> None:
    cutter = Cutter(None, ROOM)
    cutter.feed((bytes([SYNC]) + bytes(187)) * 2)
    assert len(cutter.feed(bytes([SYNC]) + bytes(187 + 100)).data) == PACKET


# --- the end ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1))
def test_the_names_of_the_end_hold_a_number_and_are_ids(number: int) -> None:
    assert ending.read_end(ending.end(number)) == ending.read_got(ending.got(number)) == number
    assert ending.read_end(ending.got(number)) is ending.read_got(ending.end(number)) is None
    assert len(ending.end(number)) <= 36


@given(st.binary(max_size=40))
def test_other_names_are_no_end(name: bytes) -> None:
    for one in (name, b"end-" + name, b"end-0000000000000000" + name + b"\n"):
        if not re.fullmatch(rb"end-[0-9a-f]{16}", one):
            assert ending.read_end(one) is None


# --- what is told ----------------------------------------------------------------------------------------------------


def test_the_statistics_of_both_sides_are_told_and_explained() -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| (?:[^|]*) \|$", PAGE, re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    for members in (report.sent(SENT, None), report.received(RECEIVED, None)):
        assert set(members) <= explained
        assert list(members)[:8] == [
            "goodput_bps", "bytes", "datagrams", "logical_sends", "lost", "duplicates", "kernel_drops", "path",
        ]  # fmt: skip


def test_what_was_lost_is_exact_once_the_end_was_told() -> None:
    assert report.sent(SENT, None)["lost"] is None
    assert report.sent(SENT, 790)["lost"] == 10
    assert report.received(RECEIVED, None)["lost"] == 7
    assert report.received(RECEIVED, 800)["lost"] == 10
    assert report.sent(SENT, 801)["lost"] == report.received(RECEIVED, 0)["lost"] == 0  # whatever a stranger says


@pytest.mark.parametrize(
    ("members", "whole", "line"),
    [
        (
            report.received(RECEIVED, None), None,
            "1.0 MB, 4.0 Mbit/s, lost 7, delay +12 ms, dropped here 5 (gro+recvmmsg+numpy)",
        ),
        (report.sent(SENT, None), 900_000, "[####################] 100%, 1.0 MB, 4.0 Mbit/s (gso+numpy)"),
        (report.sent(SENT, None), 4_000_000, "[#####...............]  25%, 1.0 MB, 4.0 Mbit/s (gso+numpy)"),
    ],
)  # fmt: skip
def test_people_get_a_line(members: dict[str, Any], whole: int | None, line: str) -> None:
    assert report.line(members | {"goodput_bps": 4e6}, whole) == line


def test_every_option_is_explained_with_the_command_that_has_it() -> None:
    parsers = next(one.choices for one in cli.arguments()._actions if isinstance(one, argparse._SubParsersAction))
    found = {
        (name, option)
        for name, parser in parsers.items()
        for action in parser._actions
        for option in action.option_strings
        if option not in ("-h", "--help")
    }
    explained = set()
    for names, of in re.findall(r"^\| (`-[^|]*) \| (send|receive|both) \|", PAGE, re.MULTILINE):
        for command in ("send", "receive") if of == "both" else (of,):
            explained |= {(command, option) for option in re.findall(r"`(--?[a-z]+)", names)}
    assert explained == found
