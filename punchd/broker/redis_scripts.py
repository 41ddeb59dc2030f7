"""What happens inside Redis: Lua scripts, each of which takes place as a whole or not at all.

Keys. What is secret or an address stands in them sealed or blinded (`redis_seal.py`), names of sessions in clear:

    punchd:broker:1:s:NAME   hash    a session: b its state or tombstone, sealed; v its version, which only grows;
                                     i which life of the name it is; o whether it is open
    punchd:broker:1:n        zset    names of open sessions, by the time when they close
    punchd:broker:1:o:BLIND  zset    those that one source created
    punchd:broker:1:live     zset    instances, by when they were last heard of
    punchd:broker:1:dead     zset    instances that are given up, by when somebody took it on to end their connections
    punchd:broker:1:c:INST   hash    connections of an instance, each with its session
    punchd:broker:1:q:INST   stream  what an instance has to tell its connections; read entries are trimmed
    punchd:broker:1:r:DEED:BLIND     list    when a source did something, within the last minute
    punchd:broker:1:m:BLIND  string  a token's messages: when its bucket will be full (GCRA)
    punchd:broker:1:beat, calm       when anybody was last heard of, and since when there was no gap in that

A change is a compare-and-set: whoever has computed the next state of a session sends it with the version that it came
from. If that is not the newest any more, the newest comes back and nothing has happened. If it is, the state and what
all instances have to tell their connections become visible in the same moment. So the order of a session's entries in
each stream is the order of its events.

Whoever has something new in its stream gets a message, and need not ask if it knows what stands before that. Commands
of an instance are many at once, so what is unread comes with none of them: there would be as many copies.

    INSTANCE FORMER-ENTRY ENTRY NAME VERSION SIZE LF    SIZE bytes: what the entry says; the state, if it goes on

An instance whose silence is long enough is given up by the others, and from then on cannot change anything: its
commands are refused. After a gap in which nobody was heard of, it was Redis that was away, or everybody: then all have
that long again.

Silence and rates are measured with Redis' clock, which may be set anew. Sessions end by the servers' clocks, which have
to agree. Every key has a time to live, so that nothing stays behind if no server comes back.

The keys of a script are not known before it runs: this takes one Redis (with replicas, if wanted), not a cluster.
Redis 6.2 or newer.
"""

from __future__ import annotations

from punchd.redis.script import Script, Use

PREFIX = "punchd:broker:1:"
REAP_MS = 10_000  # of silence, and an instance is given up
GAP_MS = 3000  # without any instance's beat: the silence of one says nothing
CLAIM_MS = 5000  # that an instance may take to end a batch of a dead one's connections
BURIED = 100  # connections in such a batch
LATE_MS = 5000  # after its time a session that nobody ended had no connections that could have been told
BUSY = b"-"  # in place of a dead instance: nobody has time for one
READ = 256  # entries that are read at once
QUEUE = 10_000  # entries that wait for an instance; it has to be given up when there are more
STATE = 4096  # bytes of a sealed state that goes with a message; a larger one is asked for
DAY_MS = 86_400_000 + 600_000  # that anything is good for: the longest session, and some

_COMMON = f"""
local P, DAY = '{PREFIX}', {DAY_MS}
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function text(number) return string.format('%.0f', number) end

-- What an instance has not read; what it has is forgotten.
local function unread(instance, last)
  local queue = P .. 'q:' .. instance
  call('XTRIM', queue, 'MINID', last)
  return call('XRANGE', queue, '(' .. last, '+', 'COUNT', {READ})
end

-- Another entry of a stream: what stands before it, and where it stands.
local function append(instance, ...)
  local queue = P .. 'q:' .. instance
  local former = (call('XREVRANGE', queue, '+', '-', 'COUNT', 1)[1] or {{'0-0'}})[1]
  local place = call('XADD', queue, '*', ...)
  call('PEXPIRE', queue, DAY)
  return former, place
end

local function give_up(instance)
  call('ZREM', P .. 'live', instance)
  call('ZADD', P .. 'dead', 0, instance)
  call('PEXPIRE', P .. 'dead', DAY)
  call('DEL', P .. 'q:' .. instance)
end
"""


def use(process: str) -> Use:
    """The connection of a process, whose instances are called PROCESS.NUMBER."""
    return Use(
        f"{PREFIX}wake:{process}".encode(),
        f"{PREFIX}probe".encode(),
        "punchd.broker",
        "HTTP gets 503, and WebSockets are closed if it takes long",
    )


# name → version, life, whether it is open, state
LOAD = Script(f"return redis.call('HMGET', '{PREFIX}s:' .. ARGV[1], 'v', 'i', 'o', 'b')")

# names → of each: version, life, whether it is open
VERIFY = Script(
    f"""
local found = {{}}
for at, name in ipairs(ARGV) do found[at] = redis.call('HMGET', '{PREFIX}s:' .. name, 'v', 'i', 'o') end
return found
"""
)

# name, version that was found or 0, life, state, ms to live, servers' time, when it closes, source, bounds
# → ok | full | source | stale, and then what LOAD answers
CREATE = Script(
    _COMMON
    + """
local name, version, life, state, ttl, at, closes, source = unpack(ARGV, 1, 8)
local key, owned = P .. 's:' .. name, P .. 'o:' .. source
if call('ZCOUNT', P .. 'n', '(' .. at, '+inf') >= tonumber(ARGV[9]) then return {'full'} end
call('ZREMRANGEBYSCORE', owned, '-inf', at)
if call('ZCARD', owned) >= tonumber(ARGV[10]) then return {'source'} end
local found = call('HMGET', key, 'v', 'i', 'o', 'b')
if (found[1] or '0') ~= version then return {'stale', unpack(found)} end
call('HSET', key, 'v', text(version + 1), 'i', life, 'o', '1', 'b', state)
call('PEXPIRE', key, ttl)
for _, index in ipairs({P .. 'n', owned}) do
  call('ZADD', index, closes, name)
  call('PEXPIRE', index, DAY)
end
return {'ok'}
"""
)

# instance, last entry read, number of an entry for itself or '', name, version, life, new state, ms to live, 1 or 0 if
# it is over, source, token that spoke or '', us a message, us ahead at most, how many others hear; of each: instance,
# entry; how many connections came; these; those that left
# → ok, the entry before its own and its own, or '' | stale, version, state | over, version, tombstone or '' | limited |
#   reaped
COMMIT = Script(
    _COMMON
    + f"""
local me, last, own, name, version, life, state, ttl, open, source, token, step, ahead = unpack(ARGV, 1, 13)
if not call('ZSCORE', P .. 'live', me) then return {{'reaped'}} end
local key, bucket = P .. 's:' .. name, P .. 'm:' .. token
local found = call('HMGET', key, 'v', 'i', 'o', 'b')
if found[2] ~= life then return {{'over', '', ''}} end
if found[3] == '0' then return {{'over', found[1], found[4]}} end
if found[1] ~= version then return {{'stale', found[1], found[4]}} end
if token ~= '' then
  local us = time[1] * 1000000 + time[2]
  local full = math.max(us, tonumber(call('GET', bucket) or 0))
  if full - us > ahead + step then full = us end -- the clock was set back
  if full - us > tonumber(ahead) then return {{'limited', '', ''}} end
  full = full + step
  call('SET', bucket, text(full), 'PX', text(math.ceil((full - us) / 1000) + 1))
end

version = text(version + 1)
call('HSET', key, 'v', version, 'o', open, 'b', state)
call('PEXPIRE', key, ttl)
if open == '0' then
  call('ZREM', P .. 'n', name)
  call('ZREM', P .. 'o:' .. source, name)
end
call('XTRIM', P .. 'q:' .. me, 'MINID', last)
local own_former, own_place = '', ''
if own ~= '' then own_former, own_place = append(me, 'n', name, 'v', version, 'k', own) end
local goes_along = open == '1' and #state <= {STATE} and state or ''
local at = 15
for _ = 1, tonumber(ARGV[14]) do
  local instance, entry = ARGV[at], ARGV[at + 1]
  at = at + 2
  if call('ZSCORE', P .. 'live', instance) then
    if call('XLEN', P .. 'q:' .. instance) >= {QUEUE} then
      give_up(instance)
    else
      local former, place = append(instance, 'n', name, 'v', version, 'b', entry)
      local head = table.concat({{instance, former, place, name, version, #entry}}, ' ')
      call('PUBLISH', P .. 'wake:' .. instance:match('^[^.]*'), head .. '\\n' .. entry .. goes_along)
    end
  end
end
local came = tonumber(ARGV[at])
for place = at + 1, #ARGV do
  local connection = ARGV[place]
  local index = P .. 'c:' .. connection:match('^(.*)-')
  if place <= at + came then
    call('HSET', index, connection, name)
    call('PEXPIRE', index, DAY)
  else
    call('HDEL', index, connection)
  end
end
return {{'ok', own_former, own_place}}
"""
)

# instance, last entry read → what is unread
READ_ON = Script(_COMMON + "return unread(ARGV[1], ARGV[2])")

# instance, last entry read, 1 if it is new, servers' time, a dead instance or '' or BUSY, those of its connections that
# were ended
# → ok | reaped, open sessions, sessions whose time has passed, a dead instance or '', some of its connections each with
#   its session, what is unread
BEAT = Script(
    _COMMON
    + f"""
local me, last, is_new, at, dead = unpack(ARGV, 1, 5)
local before = tonumber(call('GET', P .. 'beat') or 0)
call('SET', P .. 'beat', text(now), 'PX', DAY)
if math.abs(now - before) > {GAP_MS} then call('SET', P .. 'calm', text(now), 'PX', DAY) end
if before - now > {GAP_MS} then -- the clock was set back: what stands there is of no use any more
  for _, instance in ipairs(call('ZRANGE', P .. 'live', 0, -1)) do call('ZADD', P .. 'live', text(now), instance) end
  for _, instance in ipairs(call('ZRANGE', P .. 'dead', 0, -1)) do call('ZADD', P .. 'dead', 0, instance) end
end
if is_new ~= '1' and not call('ZSCORE', P .. 'live', me) then return {{'reaped'}} end
call('ZADD', P .. 'live', text(now), me)
call('PEXPIRE', P .. 'live', DAY)
if now - tonumber(call('GET', P .. 'calm') or now) >= {REAP_MS} then
  local silent = call('ZRANGEBYSCORE', P .. 'live', '-inf', text(now - {REAP_MS}), 'LIMIT', 0, 10)
  for _, instance in ipairs(silent) do give_up(instance) end
end

for place = 6, #ARGV do call('HDEL', P .. 'c:' .. dead, ARGV[place]) end
local is_busy = dead == '{BUSY.decode()}'
if dead == '' then
  dead = call('ZRANGEBYSCORE', P .. 'dead', '-inf', text(now - {CLAIM_MS}), 'LIMIT', 0, 1)[1] or ''
end
local left = {{}}
if dead ~= '' and not is_busy then
  left = call('HRANDFIELD', P .. 'c:' .. dead, {BURIED}, 'WITHVALUES')
  if #left == 0 then
    call('ZREM', P .. 'dead', dead)
    dead = ''
  else
    call('ZADD', P .. 'dead', text(now), dead)
  end
end
local passed = call('ZREMRANGEBYSCORE', P .. 'n', '-inf', text(at - {LATE_MS}))
return {{'ok', call('ZCOUNT', P .. 'n', '(' .. at, '+inf'), passed, dead, left, unread(me, last)}}
"""
)

# instance: it says goodbye
RESIGN = Script(_COMMON + "give_up(ARGV[1])")

# deed and source, how many, within how many ms → 0, or in how many ms one will be allowed
RATE = Script(
    _COMMON
    + """
local key, most, period = P .. 'r:' .. ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local first = call('LINDEX', key, 0)
while first and (now - first >= period or now < tonumber(first)) do -- or the clock was set back
  call('LPOP', key)
  first = call('LINDEX', key, 0)
end
if call('LLEN', key) >= most then return first + period - now end
call('RPUSH', key, text(now))
call('PEXPIRE', key, period)
return 0
"""
)
