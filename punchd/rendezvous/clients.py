"""The table of clients: who is registered, from where its last pulse came, and in which state it is.

Theory of operation. A client's state is not stored; it follows from two times, exactly, at every access:

    lease       when it was last accepted or verified; at first, when it registered. age = now - lease
    last pulse  when its last accepted pulse came, if any did

    state     condition                        pulse                  verify
    NEW       no pulse ever, age < 210 s       1020, becomes ONLINE   nothing changes
    ONLINE    age <= 35 s                      1020, lease := now     nothing changes
    PENDING   35 s < age < 210 s               1050, no change        lease := now, becomes ONLINE
    gone      age >= 210 s, or logged out      1060                   no such client

35 s is the pulse interval with a grace for jitter, 210 s the error time and one interval. `sweep` only frees memory.

A million clients must fit, and a garbage collector that walks over a million objects stops the server for 0.2 s. So a
client is a row in columns of plain bytes and numbers, which no collector looks at; two dictionaries of bytes and ints
lead to its row. Expiry is a calendar: each row stands in the list of one second, and when that second comes, it is
either gone or moved to the second in which its renewed lease ends. A row that is given up early (logout, eviction)
stays where it is, and so does the client that takes it next, whose lease cannot end before that second: a row is never
in two lists.

When the table is full, the oldest client that never sent a pulse makes room: flooding /register costs those who were
registered and never used, not those who are online.

Pure: `now` is in seconds of a clock that never goes back.

Source: rendezvous specification §2, §6, D-07 to D-11, D-14, D-18.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator
from itertools import takewhile
from math import inf

from punchd.endpoint import IPAddress
from punchd.rendezvous import pulse, source
from punchd.rendezvous.pulse import ACCEPTED, CLOCK_SKEW_MS, ID_SIZE, KEY_SIZE, UNKNOWN, VERIFY, SignedPulse, key_digest
from punchd.rendezvous.views import Policy, SeenAddress, State, Timing, View

# Times are differences of floats: what is meant to be 35 s may come out as 35.000000000001. Far below a millisecond.
_ROUNDING_S = 1e-6

_GROWTH = 1024  # rows by which the columns grow
_IP_SIZE = 16

# Flags of a row.
_TAKEN = 1  # a client lives here
_FILED = 2  # stands in the calendar
_NEW = 4  # no pulse was ever accepted
_MUST_VERIFY = 8  # its address changed, and that takes a verify
_MAY_MOVE = 16  # it verified: the next pulse may come from anywhere
_SIGNS = 32  # it has sent a good signed pulse: plain ones no longer count


class Clients:
    """The table.

    Args:
        capacity: clients at most.
        timing: the three times.
        policy: what is demanded beyond a key.
    """

    def __init__(self, capacity: int, timing: Timing | None = None, policy: Policy | None = None) -> None:
        self._capacity = capacity
        self._timing = timing or Timing()
        self._policy = policy or Policy()
        self._online_s = self._timing.online + _ROUNDING_S
        self._gone_s = self._timing.lifetime - _ROUNDING_S
        self._row_of_key: dict[bytes, int] = {}  # by SHA-256 of the key
        self._row_of_id: dict[bytes, int] = {}
        self._flags = bytearray()
        self._lease = array("d")
        self._seen4 = array("d")  # -inf: never
        self._seen6 = array("d")
        self._signed_ms = array("Q")  # of the last accepted signed pulse
        self._ids = bytearray()
        self._keys = bytearray()
        self._sources4 = bytearray()
        self._sources6 = bytearray()
        self._verified_from = bytearray()  # packed address of the last register or verify, where the policy asks
        self._free = array("I")
        self._calendar: dict[int, array[int]] = {}  # second → rows that may be gone then
        self._newcomers: OrderedDict[int, None] = OrderedDict()  # rows that are NEW, the oldest first

    def __len__(self) -> int:
        """Clients in the table, those that are gone and not yet swept included."""
        return len(self._row_of_id)

    def __contains__(self, client_id: bytes) -> bool:
        return client_id in self._row_of_id

    # --- coming and going --------------------------------------------------------------------------------------------

    def register(self, client_id: bytes, key: bytes, now: float, ip: IPAddress | None = None) -> list[bytes] | None:
        """Take a new client with an id of 16 random bytes and a key of 32, registered from `ip`.

        Returns:
            The ids of those that made room, if any; None if the table is full.
        """
        evicted: list[bytes] = []
        if len(self._row_of_id) >= self._capacity:
            if not self._newcomers:
                return None
            oldest = next(iter(self._newcomers))
            evicted.append(self._id(oldest))
            self._remove(oldest)
        row = self._free.pop() if self._free else self._grow()
        self._flags[row] |= _TAKEN | _NEW
        self._lease[row] = now
        self._seen4[row] = self._seen6[row] = -inf
        self._signed_ms[row] = 0
        self._ids[row * ID_SIZE : (row + 1) * ID_SIZE] = client_id
        self._keys[row * KEY_SIZE : (row + 1) * KEY_SIZE] = key
        self._remember_ip(row, ip)
        self._row_of_id[client_id] = row
        self._row_of_key[key_digest(key)] = row
        if not self._flags[row] & _FILED:
            self._file(row)
        self._newcomers[row] = None
        return evicted

    def authenticate(self, key: bytes, now: float) -> bytes | None:
        """The id of the client with that key; None if there is none any more."""
        row = self._living(self._row_of_key.get(key_digest(key)), now)
        return None if row is None else self._id(row)

    def verify(self, key: bytes, now: float, ip: IPAddress | None = None) -> bytes | None:
        """The client says over HTTP that it is there. Its id; None if it is gone."""
        row = self._living(self._row_of_key.get(key_digest(key)), now)
        if row is None:
            return None
        if self._state(row, now) is State.PENDING:
            self._lease[row] = now
            self._flags[row] = self._flags[row] & ~_MUST_VERIFY | _MAY_MOVE
        self._remember_ip(row, ip)
        return self._id(row)

    def logout(self, key: bytes, now: float) -> bytes | None:
        """Remove the client at once. Its id; None if it is gone."""
        row = self._living(self._row_of_key.get(key_digest(key)), now)
        if row is None:
            return None
        client_id = self._id(row)
        self._remove(row)
        return client_id

    def sweep(self, now: float, most: int) -> tuple[list[bytes], bool]:
        """Free what is gone. The ids that were, and whether `most` rows were looked at and more are due."""
        gone: list[bytes] = []
        for second in sorted(second for second in self._calendar if second <= now):
            rows = self._calendar[second]
            while rows:
                if most <= 0:
                    return gone, True
                most -= 1
                row = rows.pop()
                self._flags[row] &= ~_FILED
                if not self._flags[row] & _TAKEN:
                    continue
                if now - self._lease[row] >= self._gone_s:
                    gone.append(self._id(row))
                    self._remove(row)
                else:
                    self._file(row)
            del self._calendar[second]
        return gone, False

    # --- pulses ------------------------------------------------------------------------------------------------------

    def pulse(self, key: bytes, origin: bytes, now: float) -> bytes:
        """The reply to a plain pulse from a (packed) source."""
        row = self._row_of_key.get(key_digest(key))
        if row is None:
            return UNKNOWN
        age = now - self._lease[row]
        if age >= self._gone_s:
            return UNKNOWN
        if self._flags[row] & _SIGNS:
            return VERIFY
        return self._accept(row, origin, now, age)

    def signed_pulse(self, signed: SignedPulse, origin: bytes, now: float, unix_ms: int, cookie_secret: bytes) -> bytes:
        """The reply to a signed pulse from a (packed) source; `unix_ms` is the server's time of day.

        To a wrong or no cookie it is the right one: nothing was learnt. A signature that the client did not make is
        answered as an unknown key is. A time that is off, or not after the last one, gets VERIFY, since the
        answer to /verify tells the client what time it is.
        """
        row = self._living(self._row_of_id.get(signed.client_id), now)
        if row is None or not signed.is_authentic(bytes(self._keys[row * KEY_SIZE : (row + 1) * KEY_SIZE])):
            return UNKNOWN
        if abs(signed.unix_ms - unix_ms) > CLOCK_SKEW_MS or signed.unix_ms <= self._signed_ms[row]:
            return VERIFY
        if self._state(row, now) is State.PENDING:
            return VERIFY
        if not pulse.is_cookie(signed.cookie, cookie_secret, origin, unix_ms // 1000):
            return pulse.cookie_reply(pulse.make_cookie(cookie_secret, origin, unix_ms // 1000))
        reply = self._accept(row, origin, now, now - self._lease[row])
        if reply is ACCEPTED:
            self._flags[row] |= _SIGNS
            self._signed_ms[row] = signed.unix_ms
        return reply

    def _accept(self, row: int, origin: bytes, now: float, age: float) -> bytes:
        flags = self._flags[row]
        if age > self._online_s and not flags & _NEW:
            return VERIFY
        if self._policy.require_same_ip and not self._is_verified_ip(row, origin):
            return VERIFY
        if self._policy.reverify_moves and self._is_move(row, origin):
            self._flags[row] = flags = flags | _MUST_VERIFY
        if flags & _MUST_VERIFY:
            return VERIFY
        if len(origin) == source.SIZE4:
            self._sources4[row * source.SIZE4 : (row + 1) * source.SIZE4] = origin
            self._seen4[row] = now
        else:
            self._sources6[row * source.SIZE6 : (row + 1) * source.SIZE6] = origin
            self._seen6[row] = now
        if flags & (_NEW | _MAY_MOVE):
            self._flags[row] = flags & ~(_NEW | _MAY_MOVE)
            self._newcomers.pop(row, None)
        self._lease[row] = now
        return ACCEPTED

    def _is_move(self, row: int, origin: bytes) -> bool:
        known = self._source(row, len(origin))
        return known is not None and known != origin and not self._flags[row] & _MAY_MOVE

    # --- looking up --------------------------------------------------------------------------------------------------

    def view(self, client_id: bytes, now: float) -> View | None:
        """What is known of a client; None if there is none of that id any more."""
        row = self._living(self._row_of_id.get(client_id), now)
        if row is None:
            return None
        last = max(self._seen4[row], self._seen6[row])
        addresses = tuple(self._addresses(row, now))
        return View(client_id, self._state(row, now), addresses, None if last == -inf else now - last)

    def count_online(self, now: float, first: int = 0, rows: int = 1 << 31) -> tuple[int, bool]:
        """How many of `rows` rows from `first` on are online, and whether there are more rows.

        Counting a million takes tens of milliseconds; a caller that has pulses to answer counts in parts. A client
        that moved and has to verify counts as online here.
        """
        oldest = now - self._online_s
        leases = self._lease[first : first + rows]
        online = sum(map(oldest.__le__, leases))
        if first == 0:
            online -= sum(1 for _ in takewhile(lambda row: self._lease[row] >= oldest, reversed(self._newcomers)))
        return online, first + rows < len(self._lease)

    def _addresses(self, row: int, now: float) -> Iterator[SeenAddress]:
        for seen, size in ((self._seen4[row], source.SIZE4), (self._seen6[row], source.SIZE6)):
            origin = self._source(row, size)
            if origin is not None and now - seen < self._gone_s:
                yield SeenAddress(source.unpack(origin), now - seen)

    # --- rows --------------------------------------------------------------------------------------------------------

    def _living(self, row: int | None, now: float) -> int | None:
        return None if row is None or now - self._lease[row] >= self._gone_s else row

    def _is_new(self, row: int) -> bool:
        return bool(self._flags[row] & _NEW)

    def _state(self, row: int, now: float) -> State:
        if self._is_new(row):
            return State.NEW
        is_late = now - self._lease[row] > self._online_s
        return State.PENDING if is_late or self._flags[row] & _MUST_VERIFY else State.ONLINE

    def _id(self, row: int) -> bytes:
        return bytes(self._ids[row * ID_SIZE : (row + 1) * ID_SIZE])

    def _source(self, row: int, size: int) -> bytes | None:
        """The last source of the family whose packed form has that size."""
        seen, sources = (self._seen4, self._sources4) if size == source.SIZE4 else (self._seen6, self._sources6)
        return None if seen[row] == -inf else bytes(sources[row * size : (row + 1) * size])

    def _remember_ip(self, row: int, ip: IPAddress | None) -> None:
        if self._policy.require_same_ip:
            packed = ip.packed if ip is not None else b""
            self._verified_from[row * _IP_SIZE : (row + 1) * _IP_SIZE] = packed.ljust(_IP_SIZE, b"\0")

    def _is_verified_ip(self, row: int, origin: bytes) -> bool:
        return origin[:-2].ljust(_IP_SIZE, b"\0") == self._verified_from[row * _IP_SIZE : (row + 1) * _IP_SIZE]

    def _remove(self, row: int) -> None:
        """Forget a client, and leave none of its bytes behind."""
        del self._row_of_id[self._id(row)]
        key = slice(row * KEY_SIZE, (row + 1) * KEY_SIZE)
        del self._row_of_key[key_digest(bytes(self._keys[key]))]
        self._keys[key] = bytes(KEY_SIZE)
        self._sources4[row * source.SIZE4 : (row + 1) * source.SIZE4] = bytes(source.SIZE4)
        self._sources6[row * source.SIZE6 : (row + 1) * source.SIZE6] = bytes(source.SIZE6)
        self._ids[row * ID_SIZE : (row + 1) * ID_SIZE] = bytes(ID_SIZE)
        self._remember_ip(row, None)
        self._flags[row] &= _FILED
        self._lease[row] = -inf
        self._newcomers.pop(row, None)
        self._free.append(row)

    def _file(self, row: int) -> None:
        second = int(self._lease[row] + self._timing.lifetime) + 1
        rows = self._calendar.get(second)
        if rows is None:
            rows = self._calendar[second] = array("I")
        rows.append(row)
        self._flags[row] |= _FILED

    def _grow(self) -> int:
        row = len(self._flags)
        self._flags.extend(bytes(_GROWTH))
        for times in (self._lease, self._seen4, self._seen6):
            times.extend([-inf] * _GROWTH)
        self._signed_ms.extend([0] * _GROWTH)
        self._ids.extend(bytes(_GROWTH * ID_SIZE))
        self._keys.extend(bytes(_GROWTH * KEY_SIZE))
        self._sources4.extend(bytes(_GROWTH * source.SIZE4))
        self._sources6.extend(bytes(_GROWTH * source.SIZE6))
        if self._policy.require_same_ip:
            self._verified_from.extend(bytes(_GROWTH * _IP_SIZE))
        self._free.extend(range(row + _GROWTH - 1, row, -1))
        return row
