"""What a producer may ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from punchd.broker.creation import Creation, read
from punchd.errors import DecodeError
from tests.unit.broker.parts import CREATED_MS


def asked(**members: Any) -> Creation:
    return read(json.dumps({"name": "show", **members}).encode())


def test_b_021_c_11_c_13_what_is_not_asked_for_has_its_default() -> None:
    assert asked() == Creation("show", ("default",), 200, 1800, None)


def test_b_004_b_020_b_021_the_expiry_is_unix_milliseconds() -> None:
    plan = asked().plan(CREATED_MS)
    assert plan.expires_ms - plan.created_ms == 1_800_000
    assert plan.expires_ms - plan.closes_ms == 100


@pytest.mark.parametrize("ttl", [1, 60.0, 86400])
def test_b_022_any_time_to_live_up_to_a_day_is_taken(ttl: float) -> None:
    assert asked(ttl=ttl).plan(0).expires_ms == ttl * 1000


@pytest.mark.parametrize("ttl", [86401, 0, -1, 1.5, True, "60", None, [60]])
def test_b_022_c_37_any_other_is_refused_by_name(ttl: object) -> None:
    with pytest.raises(DecodeError, match="ttl: expected a whole number from 1 to 86400"):
        asked(ttl=ttl)


@pytest.mark.parametrize(("latency", "good"), [(20, True), (8000, True), (19, False), (8001, False), (True, False)])
def test_c_11_the_latency_is_within_the_schemas_bounds(latency: int, good: bool) -> None:
    if good:
        assert asked(latency=latency).plan(0).latency_ms == latency
        return
    with pytest.raises(DecodeError, match="latency"):
        asked(latency=latency)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_b_006_a_session_has_1_to_16_streams_in_the_order_asked_for(count: int) -> None:
    names = [f"cam-{number}" for number in range(count, 0, -1)]
    assert asked(streams=names).streams == tuple(names)


@pytest.mark.parametrize(
    "streams", [[], ["a"] * 2, [f"s{n}" for n in range(17)], "cam", {"a": 1}, [1], [""], ["a\n"], None, [None]], ids=str
)
def test_b_006_other_streams_are_refused(streams: object) -> None:
    with pytest.raises(DecodeError, match="streams"):
        asked(streams=streams)


@pytest.mark.parametrize("body", [b'{"Name":"show"}', b'{"name":"-"}', b'{"name":7}', b'{"name":"show\\n"}', b"{}"])
def test_b_001_b_005_the_name_is_needed_and_named(body: bytes) -> None:
    with pytest.raises(DecodeError, match=r"name: expected 1 to 64"):
        read(body)


@pytest.mark.parametrize("body", [b"", b"[]", b'"show"', b'{"name":"a","name":"b"}', b'\xef\xbb\xbf{"name":"show"}'])
def test_b_002_b_003_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError, match="JSON"):
        read(body)


def test_c_16_c_46_other_members_are_ignored() -> None:
    assert asked(expectedPeers=3, x={"y": []}) == asked()


@pytest.mark.parametrize("token", [123, None, {}, [], True])
def test_b_041_a_turnstile_token_of_another_type_is_none(token: object) -> None:
    assert asked(turnstileToken=token).turnstile is None
    assert asked(turnstileToken="word").turnstile == "word"
    assert "word" not in repr(asked(turnstileToken="word"))
