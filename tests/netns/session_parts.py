"""`punch session join` as people run it: a broker and STUN on the public side, peers behind NATs, SRT tools.

a --- a-box (NAT) --- isp --- core --- server: punchd-broker with TLS on 192.0.2.10:8443, coturn on 3478
b --- b-box (NAT) --- isp --'

Media are ffmpeg's test source as MPEG-TS: what it makes goes in datagrams to one tool and is noted, what the other tool
gives is noted, too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from types import MappingProxyType
from typing import Any

from tests.natlab import KINDS, Host, Laboratory, Site
from tests.netns.punch_parts import PATIENCE_S, START_S, Program
from tests.unit.web.certificates import write_certificate

BROKER4, BROKER6 = "192.0.2.10", "2001:db8:ffff::10"
INPUT_PORT, OUTPUT_PORT = 5100, 5200
CHUNK = 7 * 188
KBITS = 400
CONFIG = """
reported-endpoint = "port"
metrics = []
[limits]
creations-per-minute = 1000
upgrades-per-minute = 1000
failed-authentications-per-minute = 1000
requests-per-minute = 1000
"""


class World:
    """The laboratory, the broker, and what was started here."""

    def __init__(self, laboratory: Laboratory, directory: Path, address: str) -> None:
        self.laboratory = laboratory
        self._address = address
        self._place = f"[{address}]:8443" if ":" in address else f"{address}:8443"
        self._stun = laboratory.stun6 if ":" in address else laboratory.stun
        self.directory = directory
        self.broker: subprocess.Popen[bytes] | None = None
        self._started: list[Program] = []
        self._names = 0

    def host(self, name: str) -> Host:
        return self.laboratory.server if name == "server" else self.laboratory.site(name).host

    def serve(self) -> None:
        """Start the broker."""
        chain, key = write_certificate(self.directory, "test CA", address=self._address)
        config = self.directory / "broker.toml"
        config.write_text(CONFIG)
        command = [
            sys.executable,
            "-m",
            "punchd.cli.broker",
            "--config",
            str(config),
            "--public-url",
            f"https://{self._place}",
        ]
        command += ["--tls-cert", str(chain), "--tls-key", str(key), "--listen", self._place]
        self.broker = self.laboratory.server.popen([*command, "--log-level", "warning"])
        deadline = time.monotonic() + START_S
        with self.laboratory.server.entered():
            while True:
                try:
                    socket.create_connection((self._address, 8443), 1).close()
                except OSError:
                    assert self.broker.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                else:
                    return

    def kill_broker(self) -> None:
        assert self.broker is not None
        self.broker.kill()
        self.broker.wait()

    def session(self, *words: str) -> tuple[str, str]:
        """A new session with one stream: the URLs of its admin and of its peers."""
        self._names += 1
        program = self.punch(
            "server", "create", f"show-{self._names}", "--broker", f"https://{self._place}", "--json", *words
        )
        made = json.loads(program.line())
        assert program.wait() == 0
        (stream,) = made["streams"].values()
        return str(made["admin"]["url"]), str(stream["url"])

    def punch(self, site: str, *words: str, stdin: int = subprocess.DEVNULL) -> Program:
        """Start `punch session` on a site's host."""
        environment = {**os.environ, "XDG_CONFIG_HOME": str(self.directory / site)}
        ca = str(self.directory / "chain.pem")
        process = self.host(site).popen(
            [sys.executable, "-m", "punchd.cli.punch", "session", words[0], "--ca", ca, *words[1:]],
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        program = Program(process, process.stderr)
        self._started.append(program)
        return program

    def join(self, site: str, url: str, *words: str, **more: Any) -> Program:
        stun = [word for server in self._stun for word in ("--stun", server)]
        return self.punch(site, "join", url, "--json", *stun, *words, **more)

    def sender(self, site: str, url: str, *words: str) -> Program:
        """With srt-live-transmit, which is fed at INPUT_PORT."""
        return self.join(site, url, "--input", f"udp://127.0.0.1:{INPUT_PORT}", *words)

    def receiver(self, site: str, url: str, *words: str) -> Program:
        """With srt-live-transmit, which gives to OUTPUT_PORT."""
        return self.join(site, url, "--output", f"udp://127.0.0.1:{OUTPUT_PORT}", *words)

    def end_all(self) -> None:
        for program in self._started:
            if program.process.poll() is None:
                program.process.terminate()
                try:
                    program.process.wait(10)
                except subprocess.TimeoutExpired:
                    program.process.kill()
            program.wait()
            for file in (program.process.stdin, program.process.stdout, program.process.stderr):
                if file is not None:
                    file.close()
        self._started.clear()


@contextmanager
def world(
    directory: Path,
    kinds: Mapping[str, str] = MappingProxyType({"a": "apdf", "b": "apdf"}),
    address: str = BROKER4,
) -> Iterator[World]:
    """Everything, served; the broker at `address`."""
    with ExitStack() as stack:
        before = signal.getsignal(signal.SIGINT)
        if before is signal.SIG_IGN:  # as in the background of a shell; `punch` would ignore it, too
            signal.signal(signal.SIGINT, signal.default_int_handler)
            stack.callback(signal.signal, signal.SIGINT, before)
        laboratory = stack.enter_context(Laboratory([Site(name, KINDS[kinds[name]]) for name in kinds]))
        found = World(laboratory, directory, address)
        stack.callback(found.end_all)
        found.serve()
        yield found


class Sink:
    """A UDP port of a host's loopback, and all that came to it."""

    def __init__(self, host: Host, port: int = OUTPUT_PORT) -> None:
        self.data = bytearray()
        self._socket = host.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        self._socket.bind(("127.0.0.1", port))
        self._socket.settimeout(0.2)
        self._is_over = Event()
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._is_over.is_set():
            try:
                self.data += self._socket.recv(2048)
            except TimeoutError:
                continue

    def until(self, size: int) -> bytes:
        """All that came, as soon as it is that much or nothing comes for seconds."""
        before, quiet_since = -1, time.monotonic()
        while len(self.data) < size and time.monotonic() - quiet_since < 5:
            if len(self.data) != before:
                before, quiet_since = len(self.data), time.monotonic()
            time.sleep(0.05)
        return bytes(self.data)

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._socket.close()


class Source:
    """ffmpeg's test picture and tone, live, to a UDP port of a host's loopback; and what was sent."""

    def __init__(self, host: Host, seconds: float, port: int = INPUT_PORT) -> None:
        self.data = bytearray()
        self._socket = host.socket()
        self._port = port
        self._process = subprocess.Popen(
            [*source_words(seconds), "-f", "mpegts", "-flush_packets", "1", "pipe:1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self._thread = Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        assert self._process.stdout is not None
        waiting = b""
        while chunk := os.read(self._process.stdout.fileno(), 65_536):
            waiting += chunk
            while len(waiting) >= CHUNK:
                self._socket.sendto(waiting[:CHUNK], ("127.0.0.1", self._port))
                self.data += waiting[:CHUNK]
                waiting = waiting[CHUNK:]

    def wait(self) -> bytes:
        """All that was sent."""
        self._thread.join()
        assert self._process.wait() == 0
        return bytes(self.data)

    def close(self) -> None:
        self._process.kill()
        self._thread.join()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._socket.close()


def source_words(seconds: float) -> list[str]:
    """The beginning of ffmpeg's command line."""
    words = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-re"]
    words += ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=10", "-f", "lavfi", "-i", "sine"]
    words += ["-t", str(seconds), "-c:v", "mpeg2video", "-b:v", f"{KBITS - 64}k", "-minrate", f"{KBITS - 64}k"]
    return [*words, "-maxrate", f"{KBITS - 64}k", "-bufsize", "400k", "-c:a", "mp2", "-b:a", "64k"]


def continuity_errors(stream: bytes) -> list[tuple[int, int, int]]:
    """Packets of MPEG-TS that are not the next of their PID: PID, expected, got (ISO/IEC 13818-1 §2.4.3.3)."""
    errors, counters = [], dict[int, int]()
    for start in range(0, len(stream) - 187, 188):
        packet = stream[start : start + 188]
        assert packet[0] == 0x47, f"no sync byte at {start}"
        pid = int.from_bytes(packet[1:3]) & 0x1FFF
        has_payload, counter = bool(packet[3] & 0x10), packet[3] & 0x0F
        if pid == 0x1FFF or not has_payload:
            continue
        expected = (counters.get(pid, counter - 1) + 1) % 16
        if counter != expected:
            errors.append((pid, expected, counter))
        counters[pid] = counter
    return errors


def probed(stream: bytes, directory: Path) -> tuple[int, float]:
    """What ffprobe finds: frames of video that it could decode, and the duration in seconds."""
    file = directory / "received.ts"
    file.write_bytes(stream)
    words = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v:0", "-of", "json"]
    words += ["-show_entries", "stream=nb_read_frames:format=duration", str(file)]
    found = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return int(found["streams"][0]["nb_read_frames"]), float(found["format"]["duration"])


def until_all(programs: Sequence[Program], event: str, timeout_s: float = PATIENCE_S) -> None:
    for program in programs:
        program.until(event, timeout_s)
