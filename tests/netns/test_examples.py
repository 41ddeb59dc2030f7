"""The examples and the library with everything real: two NATs, two daemons, a rendezvous server, two programs.

  alice --- NAT ---+--- Internet ---+--- NAT --- bob
daemon, chat       |                |         daemon, chat
              STUN servers     punchd-rendezvous
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest
import trio

from punchd.client import AttemptError, Relay, blocking, trio_client
from tests.natlab import KINDS, Host, Laboratory, Site
from tests.servers import rendezvous
from tests.unit.test_client_real_daemon import wait_until_served
from tests.unit.test_examples_chat import Chatter, build_chat, chat_command, chatter, have_a_chat, id_in

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: builds network namespaces; run sudo ./dev test"),
]

PORT = 5025
RECEIVE_S = 10.0  # for a datagram that is already on its way


@contextmanager
def daemon(host: Host, stun: tuple[str, str], directory: Path) -> Iterator[Path]:
    """A daemon in `host`'s namespace; the path of its socket, which other namespaces reach as well."""
    path, log = directory / f"{host.name}.socket", directory / f"{host.name}.log"
    command = [sys.executable, "-m", "punchd.cli.punchd", "--socket", str(path), "--techniques", "udp"]
    for server in stun:
        command += ["--stun", server]
    with log.open("wb") as output, host.popen(command, stderr=output) as process:
        try:
            wait_until_served(path, process)
            yield path
        finally:
            process.terminate()


@pytest.fixture(name="chat_c", scope="module")
def _chat_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_chat(tmp_path_factory.mktemp("chat"))


@pytest.mark.parametrize("kind", ["full-cone", "apdf"])
@pytest.mark.parametrize("languages", ["python calls python", "python calls c", "c calls python"])
def test_two_programs_behind_two_nats_chat(languages: str, kind: str, tmp_path: Path, chat_c: Path) -> None:
    first, _, second = languages.split()
    with Laboratory([Site("a", KINDS[kind]), Site("b", KINDS[kind])]) as lab, ExitStack() as stack:
        where = f"{lab.server.ipv4}:{PORT}"
        stack.enter_context(rendezvous(lab.server, where))
        chatters: list[Chatter] = []
        called = None
        for site, language in (("b", second), ("a", first)):
            host = lab.site(site).host
            path = stack.enter_context(daemon(host, lab.stun, tmp_path))
            command = chat_command(chat_c if language == "c" else None, where, called, path)
            one = stack.enter_context(chatter(command, host.popen))
            if called is None:
                news = one.read_news("waiting as")
                assert news[0].startswith(f"own address: {host.public_ipv4} port ")
                called = id_in(news)
            chatters.append(one)
        bob, alice = chatters
        assert alice.read_news("connected by udp")[-1].count(lab.site("b").host.public_ipv4) == 1
        assert bob.read_news("connected by udp")[-1].count(lab.site("a").host.public_ipv4) == 1
        have_a_chat(alice, bob)


@pytest.mark.parametrize("flavour", ["blocking", "trio"])
def test_both_flavours_of_the_library_connect_two_sites(flavour: str, tmp_path: Path) -> None:
    with Laboratory([Site("a", KINDS["apdf"]), Site("b", KINDS["apdf"])]) as lab, ExitStack() as stack:
        a, b = (str(stack.enter_context(daemon(lab.site(name).host, lab.stun, tmp_path))) for name in "ab")
        one, other = connect_by_threads(a, b) if flavour == "blocking" else trio.run(connect_by_tasks, a, b)
        with one, other:
            for sock in (one, other):
                sock.settimeout(RECEIVE_S)
                assert not os.get_inheritable(sock.fileno())
            one.send(b"from one")
            other.send(b"from the other")
            assert (other.recv(100), one.recv(100)) == (b"from one", b"from the other")


def connect_by_threads(path_a: str, path_b: str) -> tuple[socket.socket, socket.socket]:
    """The blocking flavour: one thread a side, tokens through queues, delivered by two more threads."""
    to_a, to_b = SimpleQueue[str | None](), SimpleQueue[str | None]()

    def deliver(tokens: SimpleQueue[str | None], attempt: blocking.Attempt) -> None:
        while (token := tokens.get()) is not None:
            attempt.deliver(token)

    with blocking.Daemon.connect(path_a) as a, blocking.Daemon.connect(path_b) as b, ThreadPoolExecutor() as threads:
        own_a, own_b = a.probe("udp"), b.probe("udp")

        def respond() -> socket.socket:
            token = to_b.get()
            assert token is not None
            with b.respond(token, peer=own_a.ip, lport=own_b.lport) as attempt:
                threads.submit(deliver, to_b, attempt)
                return attempt.connect(to_a.put).socket

        responder = threads.submit(respond)
        try:
            with a.initiate(own_b.ip, own_b.ports, techniques="udp", lport=own_a.lport) as attempt:
                threads.submit(deliver, to_a, attempt)
                one = attempt.connect(to_b.put).socket
            return one, responder.result()
        finally:
            to_a.put(None)
            to_b.put(None)


async def connect_by_tasks(path_a: str, path_b: str) -> tuple[socket.socket, socket.socket]:
    """The trio flavour: one task a side, tokens through memory channels."""
    send_to_a, tokens_for_a = trio.open_memory_channel[str](16)
    send_to_b, tokens_for_b = trio.open_memory_channel[str](16)
    found: list[socket.socket] = []
    async with trio_client.Daemon.connect(path_a) as a, trio_client.Daemon.connect(path_b) as b:
        own_a, own_b = await a.probe("udp"), await b.probe("udp")

        async def respond() -> None:
            token = await tokens_for_b.receive()
            async with b.respond(token, peer=own_a.ip, lport=own_b.lport) as attempt:
                found.append(plain((await attempt.connect(send_to_a.send, tokens_for_b)).socket))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(respond)
            async with a.initiate(own_b.ip, own_b.ports, techniques="udp", lport=own_a.lport) as attempt:
                one = plain((await attempt.connect(send_to_b.send, tokens_for_a)).socket)
    return one, found[0]


def plain(sock: trio.socket.SocketType) -> socket.socket:
    """The same socket for blocking code."""
    with sock:
        return socket.socket(fileno=os.dup(sock.fileno()))


def test_a_cancelled_attempt_ends_the_other_one_when_its_last_token_is_relayed(tmp_path: Path) -> None:
    with Laboratory([Site("a", KINDS["apdf"]), Site("b", KINDS["apdf"])]) as lab, ExitStack() as stack:
        paths = [str(stack.enter_context(daemon(lab.site(name).host, lab.stun, tmp_path))) for name in "ab"]
        with blocking.Daemon.connect(paths[0]) as a, blocking.Daemon.connect(paths[1]) as b:
            own_a, own_b = a.probe("udp"), b.probe("udp")
            with a.initiate(own_b.ip, own_b.ports, techniques="udp", lport=own_a.lport) as calling:
                offer = next(event.token for event in calling if isinstance(event, Relay))
                with b.respond(offer, peer=own_a.ip, lport=own_b.lport) as answering:
                    next(event for event in answering if isinstance(event, Relay))  # not relayed: a waits for it
                    calling.cancel()
                    with pytest.raises(AttemptError, match="cancelled"):
                        calling.connect(answering.deliver)
                    with pytest.raises(AttemptError, match="peer-abort"):
                        answering.connect(lambda token: None)


def test_a_token_that_names_another_address_than_the_peers_is_refused(tmp_path: Path) -> None:
    with Laboratory([Site("a", KINDS["apdf"]), Site("b", KINDS["apdf"])]) as lab, ExitStack() as stack:
        paths = [str(stack.enter_context(daemon(lab.site(name).host, lab.stun, tmp_path))) for name in "ab"]
        with blocking.Daemon.connect(paths[0]) as a, blocking.Daemon.connect(paths[1]) as b:
            own_b = b.probe("udp")
            with a.initiate(own_b.ip, own_b.ports, techniques="udp") as calling:
                offer = next(event.token for event in calling if isinstance(event, Relay))
                with (
                    b.respond(offer, peer=lab.server.ipv4) as answering,
                    pytest.raises(AttemptError, match="token-mismatch"),
                ):
                    answering.connect(lambda token: None)
