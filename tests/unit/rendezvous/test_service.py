"""A whole server on loopback sockets: the seed's client, garbage, WebSockets, silence about secrets, the end."""

from __future__ import annotations

import json
import logging
import random
import socket
from collections.abc import Sequence

import pytest
import trio
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from punchd.errors import StoreError
from punchd.rendezvous import pulse
from punchd.rendezvous.settings import Settings
from tests.unit.rendezvous.parts import GENEROUS, Member
from tests.unit.rendezvous.running import PATIENCE_S, Pulser, Running, loopback, running, until

FUZZ = [20_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]


def client_of_the_seed(http: int, udp: int) -> list[object]:
    """Written from the seed's README alone: 32 raw bytes out, 4 bytes in."""
    import json, socket, struct, urllib.request  # noqa: E401, I001

    def call(method: str, path: str, key: str = "") -> dict:  # type: ignore[type-arg]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(f"http://127.0.0.1:{http}{path}", None, headers, method=method)
        return json.load(urllib.request.urlopen(request))  # type: ignore[no-any-return]  # noqa: S310

    me = call("POST", "/register")
    heart = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    heart.sendto(bytes.fromhex(me["private_id"]), ("127.0.0.1", udp))
    code = struct.unpack("!i", heart.recv(4))[0]
    where = call("GET", f"/peer/{me['client_id']}/udp", me["private_id"])
    how = call("GET", f"/peer/{me['client_id']}/udp/status", me["private_id"])
    call("POST", "/verify", me["private_id"]), call("POST", "/logout", me["private_id"])
    port = heart.getsockname()[1]
    heart.close()
    return [code, where["port"] == port, where["host"], how["status"], how["last_online"]]


async def test_a_client_of_15_lines_written_from_the_seed_alone_works_d_01_d_02_d_03() -> None:
    async with running() as server:
        told = await trio.to_thread.run_sync(client_of_the_seed, server.http, server.udp)
    assert told == [1020, True, "127.0.0.1", "ONLINE", 0]


async def test_v_002_v_006_d_02_pulses_from_two_sockets_move_the_address_and_strangers_are_unknown() -> None:
    async with running() as server:
        member = await server.register()
        with Pulser(server.udp) as one, Pulser(server.udp) as two:
            for pulser, datagram in ((one, member.raw_key), (two, member.key.upper().encode())):
                assert await pulser.pulse(datagram) == 1020
                _, told = await server.ask("GET", f"/peer/{member.id}/udp", member)
                assert told["port"] == pulser.port
            assert await one.pulse(bytes(32)) == 1060
            await server.ask("POST", "/logout", member)
            assert await one.pulse(member.raw_key) == 1060


async def test_signed_pulses_work_from_the_first_to_the_next() -> None:
    async with running() as server:
        member = await server.register()
        with Pulser(server.udp) as pulser:
            now_ms = int((await server.ask("POST", "/verify", member))[1]["timestamp"]) * 1000
            with trio.fail_after(PATIENCE_S):
                first = pulse.sign(member.raw_key, bytes.fromhex(member.id), now_ms)
                await pulser.socket.sendto(first, ("127.0.0.1", server.udp))
                reply = pulse.read_reply(await pulser.socket.recv(100))
            assert reply.cookie is not None
            for step in (1, 2):
                signed = pulse.sign(member.raw_key, bytes.fromhex(member.id), now_ms + step, reply.cookie)
                assert await pulser.pulse(signed) == 1020
            assert await pulser.pulse(member.raw_key) == 1050
            _, told = await server.ask("GET", f"/peer/{member.id}/udp", member)
            assert told["port"] == pulser.port


@pytest.mark.parametrize("size", [0, 1, 31, 33, 63, 64, 65, 68, 69, 1472])
async def test_v_018_v_003_malformed_datagrams_get_no_reply_and_good_ones_exactly_one(size: int) -> None:
    async with running() as server:
        member = await server.register()
        with Pulser(server.udp) as pulser:
            await pulser.socket.sendto(b"z" * size, ("127.0.0.1", server.udp))
            for _ in range(3):
                assert await pulser.pulse(member.raw_key) == 1020
            assert await pulser.hears_nothing()


async def test_v_003_a_socket_for_all_addresses_answers_from_the_one_that_was_asked() -> None:
    async with running(udp=loopback(socket.SOCK_DGRAM, "0.0.0.0")) as server:  # noqa: S104
        member = await server.register()
        with Pulser(server.udp, "127.0.0.5") as pulser, trio.fail_after(PATIENCE_S):
            await pulser.socket.sendto(member.raw_key, pulser.to)
            assert await pulser.socket.recvfrom(100) == ((1020).to_bytes(4, "big"), ("127.0.0.5", server.udp))


@pytest.mark.parametrize("count", FUZZ)
async def test_v_021_d_20_after_random_datagrams_every_client_is_there_and_the_next_pulse_is_answered(
    count: int,
) -> None:
    chance = random.Random(5024)
    sizes = (0, 1, 31, 32, 32, 33, 63, 64, 64, 65, 68, 68, 69, 200, 1472)
    async with running() as server:
        members = [await server.register() for _ in range(20)]
        with Pulser(server.udp) as pulser, Pulser(server.udp) as good:
            flood = socket.fromfd(pulser.socket.fileno(), socket.AF_INET, socket.SOCK_DGRAM)
            with flood:
                flood.connect(("127.0.0.1", server.udp))
                for number in range(count):
                    size = chance.choice(sizes)
                    data = chance.randbytes(size)
                    flood.send(b"SRP1" + data[4:] if size == 68 and number % 2 else data, socket.MSG_DONTWAIT)
                    if number % 500 == 0:
                        assert await good.pulse(members[number // 500 % 20].raw_key) == 1020
            for member in members:
                assert await good.pulse(member.raw_key) == 1020
        assert len(server.store._clients) == 20
        _, _, metrics = await server.ask_bytes("GET", "/metrics", port=server.metrics)
        counted = {line.split()[0]: float(line.split()[1]) for line in metrics.decode().splitlines() if line[0] != "#"}
        results = ("accepted", "verify", "cookie", "unknown", "malformed")
        total = sum(counted[f'punchd_rendezvous_pulses_total{{result="{result}"}}'] for result in results)
        assert total == count + -(-count // 500) + 20  # nothing lost
        assert counted["punchd_rendezvous_pulse_replies_limited_total"] > 0


async def test_unknown_keys_get_20_replies_a_second_and_good_ones_from_the_same_address_all() -> None:
    async with running() as server:
        member = await server.register()
        with Pulser(server.udp) as pulser, Pulser(server.udp) as good:
            for number in range(200):
                await pulser.socket.sendto(number.to_bytes(32, "big"), ("127.0.0.1", server.udp))
            for _ in range(200):
                assert await good.pulse(member.raw_key) == 1020
            replies = 0
            with trio.move_on_after(0.05):
                while True:
                    await pulser.socket.recv(100)
                    replies += 1
        assert 20 <= replies < 100


async def test_while_the_store_does_not_answer_pulses_wait_http_says_so_and_then_all_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> None:
        raise StoreError("down")

    async with running() as server:
        member = await server.register()
        listener = await listen(server, member)
        await until(lambda: len(server.store._waits) == 1)
        with Pulser(server.udp) as pulser:
            with monkeypatch.context() as patch:
                for name in ("pulses", "authenticate", "register", "take_signals"):
                    patch.setattr(server.store, name, fail)
                await pulser.socket.sendto(member.raw_key, ("127.0.0.1", server.udp))
                assert await pulser.hears_nothing()
                for method, path in (("POST", "/register"), ("POST", "/verify"), ("GET", "/signals")):
                    status, told = await server.ask(method, path, member)
                    assert (status, told["error"]) == (503, "UNHEALTHY")
                await server.store.post_signal(bytes(16), bytes.fromhex(member.id), "x")
                assert len(await listener.signals(1)) == 1
                assert await listener.close_code() == 1013
            await listener.stream.aclose()
            assert await pulser.pulse(member.raw_key) == 1020


async def test_d_18_pulses_come_over_ipv6_too() -> None:
    async with running(udp=loopback(socket.SOCK_DGRAM, "::1")) as server:
        member = await server.register()
        with Pulser(server.udp, "::1") as pulser:
            assert await pulser.pulse(member.raw_key) == 1020
            _, told = await server.ask("GET", f"/peer/{member.id}/udp", member)
            assert (told["host"], told["port"]) == ("::1", pulser.port)


async def test_d_26_a_body_that_nobody_asked_for_may_have_1_kib_and_no_more() -> None:
    async with running() as server:
        for size, status in ((1024, 200), (1025, 413)):
            assert (await server.ask("POST", "/register", body=b"x" * size))[0] == status


async def test_health_is_503_while_the_store_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async def is_healthy() -> bool:
        return False

    async with running() as server:
        assert (await server.ask("GET", "/health"))[0] == 200
        monkeypatch.setattr(server.store, "is_healthy", is_healthy)
        status, told = await server.ask("GET", "/health")
        assert (status, told["error"]) == (503, "UNHEALTHY")


class Listener:
    """A WebSocket client for signals, on the `websockets` library's own protocol."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.protocol = ClientProtocol(parse_uri("ws://x/signals"))

    async def open(self, member: Member) -> None:
        request = self.protocol.connect()
        request.headers["Authorization"] = f"Bearer {member.key}"
        self.protocol.send_request(request)
        await self.flush()
        await self.next_events()

    async def flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                await self.stream.send_all(data)

    async def next_events(self) -> Sequence[object]:
        while True:
            events = list(self.protocol.events_received())
            if events:
                return events
            with trio.fail_after(PATIENCE_S):
                self.protocol.receive_data(await self.stream.receive_some(4096))
            await self.flush()

    async def signals(self, count: int) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        while len(found) < count:
            frames = [frame for frame in await self.next_events() if isinstance(frame, Frame)]
            found += [json.loads(bytes(frame.data)) for frame in frames if frame.opcode is Opcode.TEXT]
        return found

    async def close_code(self) -> int:
        while self.protocol.close_rcvd is None:
            await self.next_events()
        return int(self.protocol.close_rcvd.code)


async def listen(server: Running, member: Member) -> Listener:
    listener = Listener(await trio.open_tcp_stream("127.0.0.1", server.http))
    await listener.open(member)
    return listener


async def test_signals_come_over_a_websocket_each_as_a_message_and_the_newest_one_gets_them() -> None:
    async with running() as server:
        sender, target = await server.register(), await server.register()
        for text in (b"a", b"b"):
            await server.ask("POST", f"/peer/{target.id}/signal", sender, text)
        older = await listen(server, target)
        first = await older.signals(2)
        assert first == [{"from": sender.id, "data": text, "age": 0} for text in "ab"]
        newer = await listen(server, target)
        assert await older.close_code() == 4001
        await server.ask("POST", f"/peer/{target.id}/signal", sender, b"c")
        assert [one["data"] for one in await newer.signals(1)] == ["c"]
        await server.ask("POST", "/logout", target)
        assert await newer.close_code() == 4004
        for listener in (older, newer):
            await listener.stream.aclose()


async def test_a_websocket_client_that_speaks_is_sent_away() -> None:
    async with running() as server:
        listener = await listen(server, await server.register())
        listener.protocol.send_text(b"hello")
        await listener.flush()
        assert await listener.close_code() == 1008
        await listener.stream.aclose()


async def test_signals_are_not_lost_to_a_poll_or_a_websocket_whose_client_left() -> None:
    async with running() as server:
        sender, target = await server.register(), await server.register()
        for way in ("poll", "websocket"):
            if way == "poll":
                stream = await trio.open_tcp_stream("127.0.0.1", server.http)
                line = f"GET /signals?wait=25 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {target.key}\r\n\r\n"
                await stream.send_all(line.encode())
            else:
                stream = (await listen(server, target)).stream
            await until(lambda: len(server.store._waits) == 1)
            await stream.aclose()
            await until(lambda: not server.store._waits)
            await server.ask("POST", f"/peer/{target.id}/signal", sender, way.encode())
            _, told = await server.ask("GET", "/signals?wait=5", target)
            assert [one["data"] for one in told["signals"]] == [way]


async def test_signals_that_a_websocket_client_did_not_read_wait_for_the_next() -> None:
    async with running(Settings(limits=GENEROUS)) as server:
        sender, target = await server.register(), await server.register()
        listener = await listen(server, target)
        listener.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent = 0
        with trio.fail_after(60):
            while True:  # until the buffers of both kernels are full and signals pile up in the server
                status, _ = await server.ask("POST", f"/peer/{target.id}/signal", sender, f"{sent:06}".encode() * 170)
                if status == 429:
                    break
                sent += 1
        read = b""
        with trio.move_on_after(0.5):
            while True:
                part = await listener.stream.receive_some(65_536)
                if not part or len(read) > 20_000:
                    break
                read += part
        await listener.stream.aclose()
        await until(lambda: not server.store._waits)
        _, told = await server.ask("GET", "/signals?wait=5", target)
        numbers = [int(str(one["data"])[:6]) for one in told["signals"]]
        assert numbers == list(range(numbers[0], sent))
        assert len(numbers) >= 32


async def test_stopping_answers_a_poll_and_closes_a_websocket_with_1001() -> None:
    async with running() as server:
        listener = await listen(server, await server.register())
        poller = await server.register()
        answers: list[tuple[int, object]] = []

        async def poll() -> None:
            answers.append(await server.ask("GET", "/signals?wait=25", poller))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll)
            await until(lambda: len(server.store._waits) == 2)
            server.stop.set()
        assert answers == [(200, {"signals": [], "ok": True})]
        assert await listener.close_code() == 1001
        await listener.stream.aclose()


async def test_v_022_neither_keys_nor_addresses_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running() as server:
        member = await server.register()
        with Pulser(server.udp, source="127.0.0.77") as pulser:
            for datagram in (member.raw_key, member.key.encode(), b"junk", bytes(32)):
                await pulser.socket.sendto(datagram, ("127.0.0.1", server.udp))
            assert await pulser.pulse(member.raw_key) == 1020
            port = pulser.port
        for method, target in (
            ("GET", f"/peer/{member.id}/udp"),
            ("GET", f"/peer/{member.id}/udp?key={member.key}"),
            ("GET", f"/{member.key}"),
            ("POST", f"/peer/{member.id}/signal"),
            ("POST", "/logout"),
            ("BREW", "/register"),
        ):
            await server.ask_bytes(method, target, member, b"canary-in-a-signal")
        await server.ask_bytes("GET", "/ HTTP/9.9\r\nx: " + member.key)
    canaries = (member.key, member.id, "canary-in-a-signal", "127.0.0.77", f":{port}", repr(member.raw_key)[2:-1])
    assert caplog.messages  # that it serves, at least
    said = "\n".join(f"{record.getMessage()} {record.args} {record.exc_text}" for record in caplog.records)
    assert [canary for canary in canaries if canary in said] == []


async def test_v_022_at_debug_addresses_are_logged_and_keys_still_are_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running() as server:
        member = await server.register()
        await server.ask_bytes("GET", f"/peer/{member.id}/udp?key={member.key}", member)
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("punchd"))
    assert "127.0.0.1" in ours
    assert member.key not in ours
    assert member.id not in ours
