"""Command lines of tools, and the options that choose them."""

from __future__ import annotations

import argparse
from ipaddress import ip_address

import pytest

from punchd.broker.connect import End, gstreamer_uri, url
from punchd.broker.messages import Direction
from punchd.endpoint import Endpoint
from punchd.errors import ConfigError
from punchd.session import options
from punchd.session.tools import Choice, commands, is_plain, programs

SENDER, RECEIVER = Direction.SENDER, Direction.RECEIVER
PASSPHRASE = "0123456789_-x"  # noqa: S105
TRANSMIT = ("srt-live-transmit", "-chunk:1316", "-s:100", "-pf:json", "-statsout:{stats}", "-loglevel:note")
LAUNCH = ("gst-launch-1.0", "-q", "-e")
FFMPEG = ("ffmpeg", "-hide_banner", "-loglevel", "warning", "-nostats")


def end(direction: Direction) -> End:
    return End(Endpoint(ip_address("192.0.2.7"), 6000), 5000, direction, 200, PASSPHRASE)


URI, GST = url(end(SENDER)), gstreamer_uri(end(SENDER))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(SENDER), [(*TRANSMIT, "file://con", URI)]),
        (Choice(RECEIVER, media="udp://127.0.0.1:5200"), [(*TRANSMIT, URI, "udp://127.0.0.1:5200")]),
        (
            Choice(SENDER, "gstreamer", "videotestsrc ! mpegtsmux"),
            [(*LAUNCH, "videotestsrc", "!", "mpegtsmux", "!", "srtsink", f"uri={GST}")],
        ),
        (Choice(RECEIVER, "gstreamer"), [(*LAUNCH, "srtsrc", f"uri={GST}", "!", "fdsink")]),
        (
            Choice(SENDER, "ffmpeg", "film.ts"),
            [
                (*FFMPEG, "-re", "-i", "film.ts", "-c", "copy", "-f", "mpegts", "-flush_packets", "1", "pipe:1"),
                (*TRANSMIT, "file://con", URI),
            ],
        ),
        (
            Choice(SENDER, "ffmpeg", "-i 'a film.mkv' -b:v 2M"),
            [
                (*FFMPEG, "-i", "a film.mkv", "-b:v", "2M", "-f", "mpegts", "-flush_packets", "1", "pipe:1"),
                (*TRANSMIT, "file://con", URI),
            ],
        ),
        (
            Choice(RECEIVER, "ffmpeg", "copy.mp4"),
            [(*TRANSMIT, URI, "file://con"), (*FFMPEG, "-i", "pipe:0", "-c", "copy", "-y", "copy.mp4")],
        ),
        (
            Choice(RECEIVER, "ffmpeg"),
            [(*TRANSMIT, URI, "file://con"), (*FFMPEG, "-i", "pipe:0", "-c", "copy", "-f", "mpegts", "-")],
        ),
        (
            Choice(SENDER, "", None, ("my tool", "{host}:{port}", "{localport}", "{latency_us}", "{stats}", "{x y}")),
            [("my tool", "192.0.2.7:6000", "5000", "200000", "{stats}", "{x y}")],
        ),
        (
            Choice(SENDER, "", None, ("tool {uri} | tee {stream}",), is_shell=True),
            [("/bin/sh", "-c", f"tool '{URI}' | tee cam")],
        ),
    ],
)
def test_each_tool_is_called_so(choice: Choice, expected: list[tuple[str, ...]]) -> None:
    assert [command.words for command in commands(choice, end(choice.direction), "cam")] == expected


def test_a_template_has_everything_in_its_environment() -> None:
    (command,) = commands(Choice(RECEIVER, "", None, ("tool",)), end(RECEIVER), "cam")
    assert command.environment["PUNCH_PASSPHRASE"] == PASSPHRASE
    assert command.environment["PUNCH_URI"] == URI
    assert command.environment["PUNCH_ROLE"] == "receiver"


@pytest.mark.parametrize("text", ["0123456789", "a-b_c.d~" * 2, "x" * 79])
def test_passphrases_that_a_url_can_hold_are_taken(text: str) -> None:
    assert is_plain(text)


@pytest.mark.parametrize(
    "text", ["", "short", "0123456789&adapter=x", "0123456789 ! filesink", "x" * 80, "0123456789\n"]
)
def test_others_are_not(text: str) -> None:
    assert not is_plain(text)


def read(*words: str, installed: bool = True) -> options.JoinOptions:
    parser = argparse.ArgumentParser(exit_on_error=False)
    options.add_arguments(parser)
    return options.read(parser.parse_args(words), lambda program: "/bin/x" if installed else None)


def test_the_options_choose_a_tool_and_its_direction() -> None:
    assert read("--input", "udp://:5100").choice == Choice(SENDER, "srt-live-transmit", "udp://:5100")
    assert read("--role", "receiver").choice == Choice(RECEIVER, "srt-live-transmit")
    assert read("--output", "x.ts", "--tool", "ffmpeg").choice == Choice(RECEIVER, "ffmpeg", "x.ts")
    template = read("--role", "sender", "--exec", "tool '{uri}' -x").choice
    assert (template.tool, template.template) == ("", ("tool", "{uri}", "-x"))
    assert read("--role", "sender", "--exec", "a | b", "--shell").choice.template == ("a | b",)
    found = read("--role", "sender", "--print", "obs", "--port", "5000", "--stun", "[2001:db8::1]:3478", "--keep")
    assert (found.form, found.port, found.stun, found.keep) == ("obs", 5000, (("2001:db8::1", 3478),), True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "expected --role sender or receiver"),
        (["--input", "a", "--output", "b"], "a stream goes one way"),
        (["--role", "sender", "--output", "b"], "--output: expected none for a sender"),
        (["--role", "receiver", "--input", "b"], "--input: expected none for a receiver"),
        (["--input", " "], "expected something"),
        (["--role", "sender", "--exec", "x", "--tool", "ffmpeg"], "--exec: expected none of"),
        (["--role", "sender", "--exec", "x", "--print", "obs"], "--exec: expected none of"),
        (["--role", "sender", "--exec", " "], "expected a command"),
        (["--role", "sender", "--exec", "x 'y"], "--exec: No closing quotation"),
        (["--role", "sender", "--exec", "x {url}"], "unknown placeholder {url}; expected {uri}"),
        (["--role", "sender", "--shell"], "--shell: expected --exec"),
        (["--input", "x", "--print", "obs"], "nothing is run"),
        (["--role", "sender", "--port", "80"], "from 1024 to 65535, got 80"),
        (["--role", "sender", "--port", "-1"], "from 1024 to 65535, got -1"),
        (["--role", "sender", "--stun", "x"], "--stun: expected HOST:PORT"),
        (["--role", "sender", "--stream=-x"], "--stream: expected a name"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(*words)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--role", "sender"], "srt-live-transmit is not installed; on Debian: apt install srt-tools"),
        (
            ["--role", "sender", "--tool", "gstreamer"],
            "gst-launch-1.0 is not installed; on Debian: apt install gstreamer1.0-tools gstreamer1.0-plugins-bad",
        ),
        (["--role", "sender", "--exec", "my-tool x"], "my-tool is not installed"),
    ],
)
def test_a_program_that_is_missing_is_named_with_its_package(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(*words, installed=False)
    assert str(refused.value) == reason
    assert read("--role", "sender", "--print", "vmix", installed=False).form == "vmix"


def test_ffmpeg_needs_a_relay_besides() -> None:
    assert programs(Choice(SENDER, "ffmpeg")) == ("srt-live-transmit", "ffmpeg")
