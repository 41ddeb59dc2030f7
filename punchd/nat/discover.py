"""Asking STUN servers from which endpoint one local UDP port is seen: when to ask again, and when to stop.

A pure machine. It is told of datagrams and of the time, and says what to send and when it wants to be woken; the
socket, the clock and the random transaction ids are its caller's.

    Discovery      event                                      action                              then
    new            start                                      ask every server                    asking
    asking         answer to a question, from its server      note the mapping; patience begins   asking
                   refusal by its server; ICMP unreachable    note why                            asking
                   a server's time to be asked again          ask it, at most MAX_SENDS times     asking
                   no server left to wait for                                                     finished
                   patience or deadline is over               the silent servers have failed      finished
    finished       anything                                   nothing; late answers are consumed  finished

**All at once.** The servers are asked back to back from one port, since the time and the ports between two questions
are where strangers' mappings come in (`punchd.nat.mapping`). A repeated question goes to the same server and so
through the same mapping: the order of the first questions is the order of the mappings.

**100 ms, not 500.** RFC 8489 §6.2.1 wants an initial RTO of 500 ms or more, as RFC 6298 does for bulk data. RFC 3489
§9.3 asked after 100, 300, 700 and 1500 ms for years. A question has 20 bytes, there are at most seven of each, and a
caller is waiting who has 2 s for this: with 500 ms a server would be asked three times (at 0, 0.5 and 1.5 s), and
20 % loss each way would silence one in twenty (0.36^3). If the path is longer than 100 ms the
only cost is a question too many. Doubling, MAX_SENDS (Rc = 7) and the wait after the last (Rm = 16) are the RFC's; the
deadline cuts them, and with the default of 2 s there are five questions to a server, so 0.36^5 = 0.6 % stay silent.

**Patience.** One answer gives a public address, two give the behaviour. When one server has answered and another has
not, a datagram was lost or the server is dead. Waiting out the deadline costs every attempt 2 s if it is dead; waiting
one round-trip time loses the verdict whenever a datagram is lost. But an answer also proves that the network carries
our questions, and doubling is there for networks that do not: from the first answer on the silent servers are asked
at the unchanged interval of 100 ms, still MAX_SENDS times in all. That fits into PATIENCE_S. So a dead server costs
0.8 s, and loss costs fewer verdicts than the doubling alone would in the whole 2 s (numbers beside the constant).
A caller that needs only the address reads `so_far` at the first answer and goes on.

**Hostile answers.** Whoever knows the 96 random bits of a question and sends from its server's endpoint is the server
or sits on the path. Anything else from a server, and anything with our transaction id from elsewhere, is consumed and
ignored. So is what the codec rejects and what cannot be (port 0, another address family): the next answer may be
right; the complaint becomes the server's failure if none comes. A first good answer counts, a later one is a
duplicate. A BindingError ends its server's part (§6.3.4; 5xx is not tried again, the time is too short), and so does
an ICMP error (§6.2.1), which can be forged: that costs the verdict, never the address that another server said.

Left out: DNS, authentication, ALTERNATE-SERVER, TCP (one question, no repetition: §6.2.2). Servers of another address
family than the local address cannot be asked from it; they are skipped and appear among the failures.

Source: RFC 8489 §6.2.1, §6.3; Karn's algorithm, RFC 6298 §3; line protocol §4 and §13.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from punchd.endpoint import Endpoint
from punchd.errors import DecodeError
from punchd.nat.mapping import Mapping, judge
from punchd.wire import stun

MAX_SERVERS = 4  # asked at once; two judge the mapping, more are for the case that some are dead
RTO_S = 0.1  # until the first repetition: line protocol §13.9, RFC 3489 §9.3
MAX_SENDS = 7  # questions to one server: Rc of RFC 8489 §6.2.1
LAST_WAIT_S = 16 * RTO_S  # after the last question: Rm of the same section
DEADLINE_S = 2.0  # of the whole discovery: "preparation at most 2 s", line protocol §4
# After the first answer: seven questions at 100 ms end 0.6 s after the first one, and the last of them has 0.2 s.
# Simulated with two servers and 20 % loss each way, 20,000 runs at each round-trip time of 20 to 300 ms: 0.3 % of the
# verdicts are lost (0.9 % at 400 ms); with doubling throughout 3.4 %, and 1.4 % if one waits for the whole deadline.
PATIENCE_S = 0.8

_SILENT = "no answer"


@dataclass(frozen=True, slots=True)
class Datagram:
    """What to send from the local port, and where to."""

    payload: bytes
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class Failure:
    """A server that said nothing of use, and why, in a few words."""

    server: Endpoint
    text: str


@dataclass(frozen=True, slots=True)
class Discovered:
    """What is known of the local port.

    Attributes:
        mapping: the verdict; None if no server answered.
        rtt_s: the smallest round-trip time to a server, seconds, at most the deadline. It is exact for a server that
            was asked once. For one asked more often it counts from the first question, as nobody knows which one was
            answered (Karn): never too short, so a time budget made from it is never too small. None without answer.
        failures: the servers that failed, in the order given; those not asked are among them.
    """

    mapping: Mapping | None
    rtt_s: float | None
    failures: tuple[Failure, ...]

    @property
    def reason(self) -> str:
        """Why there is no mapping, for a `no-address` line; empty where there is one."""
        if self.mapping is not None:
            return ""
        if not self.failures:
            return "no STUN server is known: use --stun or the configuration"
        causes = (f"{f.server}" if f.text == _SILENT else f"{f.server} ({f.text})" for f in self.failures)
        return f"no STUN server answered: {', '.join(causes)}"


@dataclass(slots=True)
class _Question:
    """One server's part: waiting until `mapped` or `failure` is set."""

    server: Endpoint
    transaction_id: bytes
    payload: bytes
    sends: int = 0
    due_s: float = 0.0
    complaint: str = _SILENT  # what the failure will be if nothing better comes
    mapped: Endpoint | None = None
    rtt_s: float = 0.0
    failure: str | None = None

    @property
    def is_waiting(self) -> bool:
        return self.mapped is None and self.failure is None


class Discovery:
    """Asks up to four servers from one port, and judges their answers.

    Times are seconds of one clock that never goes back. Call `start` once, send what it returns, then feed every
    datagram to `handle_datagram` and call `handle_timeout` at `next_timeout`, until `result` is there. Without servers
    it is there from the beginning.

    Args:
        servers: where to ask, best first; a repeated one counts once, and of the rest MAX_SERVERS at most are asked.
        local: the port's own endpoint, with the real address (an unspecified one is never found open).
        transaction_ids: 12 random bytes for each of `servers`, all different, used for nothing else.
        deadline_s: when to end at the latest, from `start` on.

    Raises:
        ValueError: not one distinct transaction id of 12 bytes for each server.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint],
        local: Endpoint,
        transaction_ids: Sequence[bytes],
        *,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        if len(set(transaction_ids)) != len(servers) or len(transaction_ids) != len(servers):
            raise ValueError(f"expected {len(servers)} distinct transaction ids, got {len(set(transaction_ids))}")
        self._local = local
        self._deadline_s = deadline_s
        self._questions: list[_Question] = []
        self._not_asked: dict[Endpoint, str] = {}
        ids: dict[Endpoint, bytes] = {}
        for server, transaction_id in zip(servers, transaction_ids, strict=True):
            ids.setdefault(server, transaction_id)
        self._servers = tuple(ids)
        for server, transaction_id in ids.items():
            if server.ip.version != local.ip.version:
                self._not_asked[server] = f"not asked from an IPv{local.ip.version} address"
            elif len(self._questions) == MAX_SERVERS:
                self._not_asked[server] = f"not asked, only {MAX_SERVERS} are"
            else:
                self._questions.append(_Question(server, transaction_id, stun.encode_request(transaction_id)))
        self._started_s: float | None = None
        self._end_s = 0.0
        self._answered = False
        self._result: Discovered | None = None
        self._finish_if_settled()

    def start(self, now: float) -> list[Datagram]:
        """The first questions, to be sent at once and in this order."""
        if self._started_s is not None:
            raise RuntimeError("a Discovery starts once")
        self._started_s = now
        self._end_s = now + self._deadline_s
        return [self._ask(question, now) for question in self._questions]

    def handle_datagram(self, data: bytes, source: Endpoint, now: float) -> bool:
        """Take a datagram that came to the local port. Never raises, whatever `data` is.

        Returns:
            Whether it is consumed: it is STUN and comes from a server that was asked, or carries an id of ours.
        """
        if self._started_s is None or not stun.is_stun(data):
            return False
        transaction_id = data[8 : stun.HEADER_SIZE]
        named = next((q for q in self._questions if q.transaction_id == transaction_id), None)
        if named is None or named.server != source:
            return named is not None or any(q.server == source for q in self._questions)
        if self._result is None and named.is_waiting:
            self._take(named, data, now - self._started_s)
            if named.mapped is not None:
                self._answered = True
                self._end_s = min(self._end_s, now + PATIENCE_S)
            self._finish_if_settled()
        return True

    def handle_unreachable(self, server: Endpoint, text: str) -> bool:
        """Take an ICMP error, or the refusal of a send, about `server`. `text`: why, in a few words.

        Returns:
            Whether it is about a server that was asked.
        """
        question = next((q for q in self._questions if q.server == server), None)
        if self._started_s is None or question is None:
            return False
        if self._result is None and question.is_waiting:
            question.failure = text
            self._finish_if_settled()
        return True

    def handle_timeout(self, now: float) -> list[Datagram]:
        """What is to be sent now; empty when called too early, and when this was the end."""
        if self._started_s is None or self._result is not None:
            return []
        if now >= self._end_s:
            self._result = self._known(final=True)
            return []
        questions: list[Datagram] = []
        for question in self._waiting():
            if question.due_s > now:
                continue
            if question.sends == MAX_SENDS:
                question.failure = question.complaint
            else:
                questions.append(self._ask(question, now))
        self._finish_if_settled()
        return questions

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout` next; None before the start and after the end."""
        if self._started_s is None or self._result is not None:
            return None
        return min(self._end_s, *(question.due_s for question in self._waiting()))

    def result(self) -> Discovered | None:
        """The final word, which never changes again; None while there are servers to wait for."""
        return self._result

    def so_far(self) -> Discovered:
        """What is known already; with one answer the mapping is `unknown` (or `open`), and its port may do."""
        return self._result or self._known(final=False)

    def _waiting(self) -> list[_Question]:
        return [question for question in self._questions if question.is_waiting]

    def _ask(self, question: _Question, now: float) -> Datagram:
        doubled_s = RTO_S * 2**question.sends
        question.sends += 1
        if question.sends == MAX_SENDS:
            question.due_s = now + LAST_WAIT_S
        else:
            question.due_s = now + (RTO_S if self._answered else doubled_s)
        return Datagram(question.payload, question.server)

    def _take(self, question: _Question, data: bytes, elapsed_s: float) -> None:
        """Note what `data`, from the right server and with the right id, says."""
        try:
            answer = stun.decode_response(data)
        except DecodeError as error:
            question.complaint = str(error)
            return
        if isinstance(answer, stun.BindingError):
            question.failure = f"error {answer.code} {answer.reason}".rstrip()
            return
        mapped = answer.mapped
        if mapped.ip.version != self._local.ip.version or mapped.ip.is_unspecified or mapped.port == 0:
            question.complaint = f"says that we are {mapped}"
            return
        question.mapped = mapped
        question.rtt_s = min(elapsed_s, self._deadline_s)

    def _finish_if_settled(self) -> None:
        if not self._waiting():
            self._result = self._known(final=True)

    def _known(self, *, final: bool) -> Discovered:
        answered = [question for question in self._questions if question.mapped is not None]
        mapping = None
        if observed := [question.mapped for question in answered if question.mapped is not None]:
            one_address = len({question.server.ip for question in answered}) == 1
            mapping = judge(self._local, observed, one_address=one_address)
        texts = dict(self._not_asked)
        for question in self._questions:
            if question.failure is not None or (final and question.is_waiting):
                texts[question.server] = question.failure or question.complaint
        failures = tuple(Failure(server, texts[server]) for server in self._servers if server in texts)
        return Discovered(mapping, min((question.rtt_s for question in answered), default=None), failures)
