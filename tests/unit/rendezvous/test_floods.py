"""Floods of datagrams: who sends too much is not heard, and everybody else is."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from punchd.rendezvous import pulses
from punchd.rendezvous.settings import Settings
from tests.unit.rendezvous.parts import GENEROUS, Member
from tests.unit.rendezvous.running import Pulser, Running, running

MOST = 100
SETTINGS = Settings(limits=replace(GENEROUS, datagrams_per_second=MOST))
MANY = 20_000  # datagrams, far more than a test sends before the server takes notice


async def flood(server: Running, pulsers: list[Pulser], datagram: bytes) -> None:
    """Send until somebody is shunned, in bursts that fill the server's batches."""
    for _ in range(MANY // 200):
        for pulser in pulsers:
            pulser.burst(datagram, 200 // len(pulsers))
        if await metric(server, "pulse_sources_shunned_total"):
            return
    raise AssertionError("nobody was shunned")


async def metric(server: Running, name: str) -> float:
    _, _, text = await server.ask_bytes("GET", "/metrics", port=server.metrics)
    [line] = [one for one in text.decode().splitlines() if one.startswith(f"punchd_rendezvous_{name} ")]
    return float(line.split()[1])


async def is_heard(pulser: Pulser, member: Member) -> bool:
    """Whether a good pulse is answered; replies to the flood may come first."""
    await pulser.drain()
    await pulser.socket.sendto(member.raw_key, pulser.to)
    return not await pulser.hears_nothing()


@pytest.mark.parametrize("what", ["good pulses", "unknown keys", "garbage"])
async def test_a_port_that_floods_is_not_heard_and_its_neighbour_is(what: str) -> None:
    async with running(SETTINGS) as server:
        member = await server.register()
        datagram = {"good pulses": member.raw_key, "unknown keys": bytes(32), "garbage": b"junk"}[what]
        with Pulser(server.udp) as loud, Pulser(server.udp) as neighbour:
            await flood(server, [loud], datagram)
            assert not await is_heard(loud, member)
            assert await metric(server, "pulses_unheard_total") > 0  # what was in the buffer before the filter came
            for _ in range(3):
                assert await neighbour.pulse(member.raw_key) == 1020


async def test_a_source_that_floods_from_many_ports_is_not_heard_at_all_and_others_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(pulses, "NETWORK_SHARE", 1 / 2)  # so that the ports stay below their own bound
    async with running(SETTINGS) as server:
        member = await server.register()
        many = [Pulser(server.udp, source="127.0.0.9") for _ in range(20)]
        with Pulser(server.udp, source="127.0.0.9") as neighbour, Pulser(server.udp) as other:
            await flood(server, many, bytes(32))
            assert not await is_heard(neighbour, member)
            assert await other.pulse(member.raw_key) == 1020
        for pulser in many:
            pulser.socket.close()
    assert [line for line in caplog.messages if line.startswith("limited: 127.0.0.9 sends")] != []


async def test_a_flood_of_good_pulses_from_many_ports_is_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulses, "NETWORK_SHARE", 1 / 50)
    async with running(SETTINGS) as server:
        member = await server.register()
        crowd = [Pulser(server.udp) for _ in range(100)]
        for _ in range(10):
            for pulser in crowd:
                pulser.burst(member.raw_key, 1)
        for pulser in crowd:
            await pulser.drain()
            assert await pulser.pulse(member.raw_key) == 1020
            pulser.socket.close()
        assert await metric(server, "pulse_sources_shunned_total") == 0
