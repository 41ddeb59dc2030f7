"""Probed ports (§13.1): what a probe says, whom its port is kept for, how long, and that nothing of it stays behind."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from punchd.config import Config, Limits
from tests.unit.daemon_fixture import PEER, Application, descriptors, offer, server, stun_server


def initiate(attempt_id: str, technique: str, *options: str) -> str:
    return "|".join((f"initiate|{attempt_id}|{technique}|{PEER}|40000", *options))


def is_free(port: int, ip: str = "127.0.0.1") -> bool:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((ip, port))
        except OSError:
            return False
        return True


@contextmanager
def taken(ip: str = "127.0.0.1") -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((ip, 0))
        yield holder.getsockname()[1]


def free_port() -> int:
    with taken() as port:
        return port


async def probed(application: Application, options: str = "") -> int:
    """Probe a port; its number."""
    await application.send("probe|p|udp" + options)
    answer = await application.until("ok|p|probe|udp|")
    return int(answer.split("|")[7])


# --- what it says ---------------------------------------------------------------------------------------------------


async def test_a_probe_says_what_stun_saw_and_carries_no_descriptor(tmp_path: Path) -> None:
    async with stun_server() as stun, server(tmp_path, Config(stun=(stun,))) as running:
        with await running.connect() as application:
            await application.send("probe|p|udp")
            words = (await application.line()).split("|")
            assert words[:5] == ["ok", "p", "probe", "udp", "127.0.0.1"]
            assert words[6] in {"open", "unknown", "endpoint-independent"}
            assert words[5].startswith(words[7]), "no NAT on loopback"
            assert not application.fds
            assert not is_free(int(words[7]))


async def test_a_probe_takes_the_port_that_it_is_told(tmp_path: Path) -> None:
    async with stun_server() as stun, server(tmp_path, Config(stun=(stun,))) as running:
        with await running.connect() as application:
            port = free_port()
            assert await probed(application, f"|lport={port}") == port


async def test_a_probe_that_no_server_answers_says_which_were_asked(tmp_path: Path) -> None:
    async with stun_server(answers=0) as stun, server(tmp_path, Config(stun=(stun,))) as running:
        with await running.connect() as application:
            await application.send("probe|p|udp")
            assert f"{stun[0]}:{stun[1]}" in await application.until("error|p|no-address|")


@pytest.mark.parametrize("line", ["probe|a|udp|lport={}", "initiate|a|bound|203.0.113.7|40000|lport={}"])
async def test_a_local_port_that_is_taken_is_port_in_use(tmp_path: Path, line: str) -> None:
    with taken() as port:
        async with stun_server() as stun, server(tmp_path, Config(stun=(stun,))) as running:
            with await running.connect() as application:
                await application.send(line.format(port))
                assert (await application.line()).startswith("error|a|port-in-use|")


# --- whom it is kept for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_line", [initiate("a", "bound"), f"respond|a|{offer('bound')}"])
async def test_a_probed_port_is_used_by_the_next_attempt_that_names_it(tmp_path: Path, request_line: str) -> None:
    async with stun_server(answers=1) as stun, server(tmp_path, Config(stun=(stun,))) as running:
        with await running.connect() as application:
            port = await probed(application)
            await application.send(f"{request_line}|lport={port}")
            await application.until_relay("a")
            assert not is_free(port)
            await application.send("cancel|a")
            await application.until("error|a|")
            await running.settle(lambda: is_free(port))


async def test_a_probed_port_is_not_for_another_connection_nor_for_two_attempts(tmp_path: Path) -> None:
    async with stun_server() as stun, server(tmp_path, Config(stun=(stun,))) as running:
        with await running.connect() as application, await running.connect() as other:
            port = await probed(application)
            await other.send(initiate("a", "bound", f"lport={port}"))
            assert (await other.line()).startswith("error|a|port-in-use|")
            await application.send(
                initiate("a", "bound", f"lport={port}"),
                initiate("b", "bound", f"lport={port}"),
                f"probe|c|udp|lport={port}",
            )
            for name in "bc":
                await application.until(f"error|{name}|port-in-use|")
            await running.settle(lambda: running.techniques["bound"].started == 1)


async def test_the_same_port_number_is_kept_for_each_local_address(tmp_path: Path) -> None:
    """An application with two interfaces, or with both families, asks for one number on each."""
    async with stun_server() as stun, server(tmp_path, Config(stun=(stun,))) as running:
        with await running.connect() as application:
            port = free_port()
            for address in ("127.0.0.1", "127.0.0.2"):
                assert await probed(application, f"|lport={port};local={address}") == port
            for address in ("127.0.0.1", "127.0.0.2"):
                await application.send(initiate(address, "bound", f"lport={port};local={address}"))
                await application.until_relay(address)
            assert running.techniques["bound"].running == 2


async def test_the_same_port_number_is_kept_for_each_family(tmp_path: Path) -> None:
    async with (
        stun_server() as stun,
        stun_server("::1") as stun6,
        server(tmp_path, Config(stun=(stun, stun6))) as running,
    ):
        with await running.connect() as application:
            port = free_port()
            for address in ("127.0.0.1", "::1"):
                assert await probed(application, f"|lport={port};local={address}") == port
            await application.send(initiate("a", "bound", f"lport={port}"))
            await application.until_relay("a")


# --- how long -------------------------------------------------------------------------------------------------------


async def test_a_port_is_kept_for_as_long_as_configured(tmp_path: Path) -> None:
    limits = Limits(kept_port_seconds=1, attempts_per_connection=1)
    async with stun_server() as stun, server(tmp_path, Config(stun=(stun,), limits=limits)) as running:
        with await running.connect() as application:
            port = await probed(application)
            assert not is_free(port)
            await application.send("probe|q|udp")
            assert (await application.line()).startswith("error|q|busy|")
            await running.settle(lambda: is_free(port))
            assert await probed(application) > 0, "its slot is free, too"


@pytest.mark.parametrize("when", ["kept", "asking", "cancelled"])
async def test_a_probed_port_is_released_when_its_connection_ends(tmp_path: Path, when: str) -> None:
    gc.collect()
    before = descriptors()
    answers = 100 if when == "kept" else 0
    async with stun_server(answers=answers) as stun, server(tmp_path, Config(stun=(stun,))) as running:
        with await running.connect() as application:
            port = free_port()
            await application.send(f"probe|p|udp|lport={port}")
            if when == "kept":
                await application.until("ok|p|")
            else:
                await running.settle(lambda: not is_free(port))
            if when == "cancelled":
                await application.send("cancel|p")
                await application.until("error|p|cancelled|")
        await running.settle(lambda: is_free(port))
    assert descriptors() <= before


async def test_a_shut_down_of_the_writing_half_answers_a_probe_that_runs(tmp_path: Path) -> None:
    async with stun_server(answers=0) as stun, server(tmp_path, Config(stun=(stun,))) as running:
        with await running.connect() as application:
            await application.send("probe|p|udp")
            application.stream.shutdown(trio.socket.SHUT_WR)
            (line,) = await application.rest()
            assert line.startswith("error|p|cancelled|")


# --- races -----------------------------------------------------------------------------------------------------------


async def test_a_cancel_in_the_moment_of_a_probes_success_gives_one_verdict(tmp_path: Path) -> None:
    """And harms nothing else: another attempt of the connection goes on."""
    seen = set()
    async with stun_server() as stun, server(tmp_path, Config(stun=(stun,))) as running:
        for turn in range(60):
            with await running.connect() as application:
                await application.send(initiate("other", "waits"), "probe|p|udp")
                for _ in range(turn // 2):
                    await trio.lowlevel.checkpoint()
                await application.send("cancel|p", "cancel|end")
                lines = []
                while not (line := await application.line()).startswith("error|end|"):
                    lines.append(line)
                of_p = [line for line in lines if line.split("|")[1] == "p"]
                verdicts = tuple("ok" if line.startswith("ok") else line.split("|")[2] for line in of_p)
                assert verdicts in {("cancelled",), ("ok", "unknown-id")}
                seen.add(verdicts)
                await running.settle(lambda: running.techniques["waits"].running == 1)
            await running.settle(lambda: running.running == 0)
    assert seen == {("cancelled",), ("ok", "unknown-id")}, "the race was not run in both ways"


async def test_a_stop_in_the_moment_of_a_probes_success_gives_one_verdict(tmp_path: Path) -> None:
    for turn in range(40):
        directory = tmp_path / str(turn)
        directory.mkdir()
        async with stun_server() as stun, server(directory, Config(stun=(stun,))) as running:
            with await running.connect() as application:
                await application.send("cancel|start", "probe|p|udp")
                await application.line()
                for _ in range(turn // 2):
                    await trio.lowlevel.checkpoint()
                running.stop.set()
                of_p = await application.rest()
                assert len(of_p) <= 1
                assert all(line.startswith(("ok|p|", "error|p|shutdown|")) for line in of_p)


@pytest.mark.parametrize("technique", ["bound", "lingers"])
async def test_a_port_may_be_named_again_in_the_very_line_after_a_cancel(tmp_path: Path, technique: str) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            port = free_port()
            again = initiate("a", technique, f"lport={port}")
            await application.send(again)
            await application.until_relay("a")
            await application.send("cancel|a", again)
            await application.until("error|a|cancelled|")
            assert (await application.line()) == f"progress|a|1|{technique}|trying|-"


async def test_a_port_may_be_probed_again_in_the_very_line_after_a_cancel(tmp_path: Path) -> None:
    async with stun_server(answers=0) as stun, server(tmp_path, Config(stun=(stun,))) as running:
        with await running.connect() as application:
            port = free_port()
            await application.send(*[f"probe|p|udp|lport={port}", "cancel|p"] * 3, f"probe|q|udp|lport={port}")
            for _ in range(3):
                assert (await application.line()).startswith("error|p|cancelled|")
            await running.settle(lambda: not is_free(port))


async def test_a_port_may_be_named_again_as_soon_as_its_attempt_has_failed(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            port = free_port()
            for _ in range(20):
                await application.send(initiate("a", "bound,lingers", f"lport={port}"))
                await application.until_relay("a")
                await application.send("cancel|a")
                await application.until("error|a|cancelled|")
