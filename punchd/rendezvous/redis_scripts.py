"""What happens inside Redis: Lua scripts, each of which takes place as a whole or not at all.

Keys. Ids, digests and fingerprints stand in them as bytes, times are microseconds of Redis' clock since 1970:

    punchd:1:k:DIGEST   hash      a client, by SHA-256 of its private key (fields: see below)
    punchd:1:i:ID       string    the DIGEST of a client
    punchd:1:q:ID       list      its signals, as `redis_codec` packs them
    punchd:1:a:PRINT    string    the binding of an alias, as `redis_codec` packs it
    punchd:1:all        zset      ID DIGEST of every client, by lease
    punchd:1:new        zset      the same of those that are NEW, by registration
    punchd:1:cost       hash      ID → what its signals cost;   punchd:1:total   what all of them cost
    punchd:1:until      zset      ID, by the time when its last signal is too old
    punchd:1:secret     string    cookies of signed pulses are made under it
    punchd:1:probe      string    shows that Redis takes commands that write

    id; f flags; l lease; s4 t4 s6 t6 source and time of the last pulse of each family; ms that of the last signed one;
    ip where it registered or verified; v what checks its signatures; w number of its newest wait; al its aliases

States follow from lease and flags at every access, exactly as in `clients.py`; each key has a time to live beside, of
the client's lease or the signal's age and a second, so that nothing stays behind even if no server comes back. What
is in `all` and `until` beyond their time is swept by the servers, a bounded part at a time.

Time is Redis' own, so that the servers' clocks need not agree; tests may give another one. It may be set back: what
then lies ahead counts as now, and is made so when it is met or swept, so that nobody is locked out and nothing stays
for longer than it would have from then on; signals from too far ahead are dropped. Comparing two strings by `<` would
follow the locale, so numbers are compared as numbers.

Waits and wakings: whoever waits for signals listens to one channel. A message is a letter and an id: S a signal came,
G the client is gone, W it has a newer wait, whose number follows.

The keys of a script are not known before it runs: this takes one Redis (with replicas, if wanted), not a cluster.
"""

from __future__ import annotations

from punchd.redis.script import Script, Use
from punchd.rendezvous.signals import OVERHEAD_BYTES

PREFIX = "punchd:1:"
CHANNEL = b"punchd:1:wake"
USE = Use(CHANNEL, b"punchd:1:probe", "punchd.rendezvous", "HTTP gets 503 and pulses nothing")

# Flags of a client.
NEW = 1  # no pulse was ever accepted
MUST_VERIFY = 2  # its address changed, and that takes a verify
MAY_MOVE = 4  # it verified: the next pulse may come from anywhere
SIGNS = 8  # it has sent a good signed pulse: plain ones no longer count

KEEP_S = 1  # that a key lives longer than what it holds is good for
SECRET_S = 86_400  # that the secret of cookies lives after its last use
SWEPT_BY_REGISTER = 100  # clients at most

_COMMON = f"""
local P, KEEP_MS, OVERHEAD = '{PREFIX}', {KEEP_S * 1000}, {OVERHEAD_BYTES}
local NEW, MUST_VERIFY, MAY_MOVE, SIGNS = {NEW}, {MUST_VERIFY}, {MAY_MOVE}, {SIGNS}
local call, has = redis.call, bit.band
local online, life, age_most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end

local function text(number) return string.format('%.0f', number) end
local function ms(us) return text(math.ceil(us / 1000) + KEEP_MS) end
local function tell(kind, id) call('PUBLISH', '{CHANNEL.decode()}', kind .. id) end

-- The client lives for another lifetime from now on.
local function renew(key, id, digest)
  call('PEXPIRE', key, ms(life))
  call('PEXPIRE', P .. 'i:' .. id, ms(life))
  call('ZADD', P .. 'all', text(now), id .. digest)
  call('PEXPIRE', P .. 'all', ms(life))
  local prints = call('HGET', key, 'al') or ''
  for at = 1, #prints, 20 do call('PEXPIRE', P .. 'a:' .. prints:sub(at, at + 19), ms(life)) end
end

-- The key of a client's hash, if the client is there. If the clock was set back, nobody knows for how long the client
-- has been silent: what lies ahead is now.
local function by_digest(digest)
  local key = P .. 'k:' .. digest
  local c = call('HMGET', key, 'l', 'id', 't4', 't6')
  local lease = tonumber(c[1])
  if lease and lease > now then
    lease = now
    call('HSET', key, 'l', text(now))
    for at, name in ipairs({{'t4', 't6'}}) do
      if tonumber(c[at + 2] or 0) > now then call('HSET', key, name, text(now)) end
    end
    renew(key, c[2], digest)
  end
  return lease and now - lease < life and key or nil
end

local function by_id(id)
  local digest = call('GET', P .. 'i:' .. id)
  return digest and by_digest(digest) or nil, digest
end

local function is_pending(flags, lease)
  return has(flags, NEW) == 0 and (now - lease > online or has(flags, MUST_VERIFY) ~= 0)
end

local function drop_queue(id)
  local cost = call('HGET', P .. 'cost', id)
  if cost then
    call('DECRBY', P .. 'total', cost)
    call('HDEL', P .. 'cost', id)
    call('ZREM', P .. 'until', id)
  end
  call('DEL', P .. 'q:' .. id)
end

local function count(id, cost)
  call('INCRBY', P .. 'total', cost)
  call('HINCRBY', P .. 'cost', id, cost)
end

-- Drop the signals of a client that are too old, or from a time that the clock has left.
local function trim(id)
  local queue, freed = P .. 'q:' .. id, 0
  local first = call('LINDEX', queue, 0)
  while first and math.abs(now - struct.unpack('>I8', first, 17)) >= age_most do
    call('LPOP', queue)
    freed = freed + #first - 24 + OVERHEAD
    first = call('LINDEX', queue, 0)
  end
  if not first then drop_queue(id) elseif freed > 0 then count(id, -freed) end
end

local function keep_queue(id)
  call('PEXPIRE', P .. 'q:' .. id, ms(age_most))
  for _, name in ipairs({{'cost', 'total', 'until'}}) do call('PEXPIRE', P .. name, ms(age_most)) end
end

local function sweep_queues(most)
  local old = call('ZRANGEBYSCORE', P .. 'until', '-inf', text(now), 'LIMIT', 0, most)
  for _, id in ipairs(old) do drop_queue(id) end
  local ahead = call('ZRANGEBYSCORE', P .. 'until', '(' .. text(now + age_most), '+inf', 'LIMIT', 0, most)
  for _, id in ipairs(ahead) do -- the clock was set back
    call('ZADD', P .. 'until', text(now + age_most), id)
    trim(id)
  end
  return math.max(#old, #ahead)
end

-- Forget a client with all that belongs to it.
local function remove(id, digest)
  local key = P .. 'k:' .. digest
  local prints = call('HGET', key, 'al') or ''
  for at = 1, #prints, 20 do call('DEL', P .. 'a:' .. prints:sub(at, at + 19)) end
  call('DEL', key, P .. 'i:' .. id)
  call('ZREM', P .. 'all', id .. digest)
  call('ZREM', P .. 'new', id .. digest)
  drop_queue(id)
  tell('G', id)
end

local function sweep_clients(most)
  local gone = call('ZRANGEBYSCORE', P .. 'all', '-inf', text(now - life), 'LIMIT', 0, most)
  for _, member in ipairs(gone) do remove(member:sub(1, 16), member:sub(17)) end
  local ahead = call('ZRANGEBYSCORE', P .. 'all', '(' .. text(now), '+inf', 'LIMIT', 0, most)
  for _, member in ipairs(ahead) do -- the clock was set back
    if not by_digest(member:sub(17)) then remove(member:sub(1, 16), member:sub(17)) end
  end
  return math.max(#gone, #ahead)
end
"""


def _script(body: str) -> Script:
    """Its own arguments begin at ARGV[5]."""
    return Script(_COMMON + body)


# id, digest, verifier, ip or '', capacity → whether there is room
REGISTER = _script(f"""
local id, digest, verifier, ip, capacity = unpack(ARGV, 5)
sweep_clients({SWEPT_BY_REGISTER})
if call('ZCARD', P .. 'all') >= tonumber(capacity) then
  local oldest = call('ZRANGE', P .. 'new', 0, 0)[1]
  if not oldest then return 0 end
  remove(oldest:sub(1, 16), oldest:sub(17))
end
local key = P .. 'k:' .. digest
call('HSET', key, 'id', id, 'f', NEW, 'l', text(now), 'v', verifier, 'ip', ip)
call('SET', P .. 'i:' .. id, digest)
call('ZADD', P .. 'new', text(now), id .. digest)
call('PEXPIRE', P .. 'new', ms(life))
renew(key, id, digest)
return 1
""")

# digest → id or nothing
AUTHENTICATE = _script("""
local key = by_digest(ARGV[5])
return key and call('HGET', key, 'id')
""")

# digest, ip or '' → id or nothing
VERIFY = _script("""
local key = by_digest(ARGV[5])
if not key then return false end
local c = call('HMGET', key, 'id', 'f', 'l')
local flags = tonumber(c[2])
if is_pending(flags, c[3]) then
  flags = bit.bor(has(flags, bit.bnot(MUST_VERIFY)), MAY_MOVE)
  call('HSET', key, 'l', text(now), 'f', flags)
  renew(key, c[1], ARGV[5])
end
if ARGV[6] ~= '' then call('HSET', key, 'ip', ARGV[6]) end
return c[1]
""")

# digest → id or nothing
LOGOUT = _script("""
local key = by_digest(ARGV[5])
if not key then return false end
local id = call('HGET', key, 'id')
remove(id, ARGV[5])
return id
""")

# a new secret, then ids of clients that sent signed pulses → time, the secret, what checks the signature of each
SIGNERS = _script(f"""
local secret = call('GET', P .. 'secret') or ARGV[5]
call('SET', P .. 'secret', secret, 'EX', {SECRET_S})
local found = {{text(now), secret}}
for at = 6, #ARGV do
  local key = by_id(ARGV[at])
  found[#found + 1] = key and call('HGET', key, 'v') or ''
end
return found
""")

# whether addresses may change, whether they must be those of HTTP; then for each pulse: digest, source, '', or, if it
# is signed: id, source, its time in ms with a letter before: C its cookie is right, N it is not → codes
PULSES = _script("""
local reverify, same_ip = ARGV[5] == '1', ARGV[6] == '1'
local SKEW_MS = 60000

local function pulse(digest, source, signed)
  local key, signed_ms
  if signed == '' then
    key = by_digest(digest)
  else
    key, digest = by_id(digest)
  end
  if not key then return 1060 end
  local family = #source == 6 and '4' or '6'
  local c = call('HMGET', key, 'id', 'f', 'l', 's' .. family, 'ip', 'ms')
  local flags = tonumber(c[2])
  if signed == '' then
    if has(flags, SIGNS) ~= 0 then return 1050 end
  else
    signed_ms = signed:sub(2)
    if math.abs(signed_ms - math.floor(now / 1000)) > SKEW_MS then return 1050 end
    local last_ms = tonumber(c[6] or 0)
    if last_ms - math.floor(now / 1000) > SKEW_MS then last_ms = 0 end -- the clock was set back
    if tonumber(signed_ms) <= last_ms or is_pending(flags, c[3]) then return 1050 end
    if signed:sub(1, 1) ~= 'C' then return 1051 end
  end
  if now - c[3] > online and has(flags, NEW) == 0 then return 1050 end
  if same_ip and c[5] ~= source:sub(1, -3) then return 1050 end
  if reverify and c[4] and c[4] ~= source and has(flags, MAY_MOVE) == 0 and has(flags, MUST_VERIFY) == 0 then
    flags = bit.bor(flags, MUST_VERIFY)
    call('HSET', key, 'f', flags)
  end
  if has(flags, MUST_VERIFY) ~= 0 then return 1050 end
  if has(flags, NEW) ~= 0 then call('ZREM', P .. 'new', c[1] .. digest) end
  flags = has(flags, bit.bnot(NEW + MAY_MOVE))
  if signed_ms then
    flags = bit.bor(flags, SIGNS)
    call('HSET', key, 'ms', signed_ms)
  end
  call('HSET', key, 's' .. family, source, 't' .. family, text(now), 'l', text(now), 'f', flags)
  renew(key, c[1], digest)
  return 1020
end

local codes = {}
for at = 7, #ARGV, 3 do codes[#codes + 1] = pulse(ARGV[at], ARGV[at + 1], ARGV[at + 2]) end
return codes
""")

# id → time, flags, lease, s4, t4, s6, t6, or nothing
LOOKUP = _script("""
local key = by_id(ARGV[5])
if not key then return false end
local c = call('HMGET', key, 'f', 'l', 's4', 't4', 's6', 't6')
return {text(now), unpack(c, 1, 6)}
""")

# sender, id of the target, text, most in a queue, most that all may cost → 0 sent, 1 unknown, 2 full, 3 exhausted
POST = _script("""
local sender, id, data, most, memory = unpack(ARGV, 5)
if not by_id(id) then return 1 end
trim(id)
if call('LLEN', P .. 'q:' .. id) >= tonumber(most) then return 2 end
sweep_queues(100)
local cost = #data + OVERHEAD
if tonumber(call('GET', P .. 'total') or 0) + cost > tonumber(memory) then return 3 end
call('RPUSH', P .. 'q:' .. id, sender .. struct.pack('>I8', now) .. data)
count(id, cost)
call('ZADD', P .. 'until', text(now + age_most), id)
keep_queue(id)
tell('S', id)
return 0
""")

# id, the number of the wait if it has one → time, number, life that is left, signals; or one letter: why there are none
TAKE = _script("""
local id, number = ARGV[5], ARGV[6]
local key = by_id(id)
if not key then return 'G' end
if number == '' then
  number = text(call('HINCRBY', key, 'w', 1))
  tell('W', id .. number)
elseif number ~= call('HGET', key, 'w') then
  return 'W'
end
trim(id)
local signals = call('LRANGE', P .. 'q:' .. id, 0, -1)
drop_queue(id)
return {text(now), number, text(life - (now - call('HGET', key, 'l'))), signals}
""")

# id, then signals as they were
RETURN = _script("""
local id = ARGV[5]
if not by_id(id) then return 0 end
for at = #ARGV, 6, -1 do
  call('LPUSH', P .. 'q:' .. id, ARGV[at])
  count(id, #ARGV[at] - 24 + OVERHEAD)
end
local last = struct.unpack('>I8', call('LINDEX', P .. 'q:' .. id, -1), 17)
call('ZADD', P .. 'until', text(last + age_most), id)
keep_queue(id)
tell('S', id)
return 0
""")

# fingerprint, most of a client, the binding → 0 bound, 1 unknown, 2 stale, 3 too many
BIND = _script("""
local print_of_key, most, binding = unpack(ARGV, 5)
local id = binding:sub(1, 16)
local key = by_id(id)
if not key then return 1 end
local known = call('GET', P .. 'a:' .. print_of_key)
local owner = known and by_id(known:sub(1, 16))
if owner then
  if known == binding then return 0 end
  local high, low = struct.unpack('>I4I4', binding, 17)
  local known_high, known_low = struct.unpack('>I4I4', known, 17)
  if known_high > high or (known_high == high and known_low >= low) then return 2 end
end

local function without(prints)
  local others = ''
  for at = 1, #prints, 20 do
    local one = prints:sub(at, at + 19)
    if one ~= print_of_key then others = others .. one end
  end
  return others
end

local own = without(call('HGET', key, 'al') or '')
if #own / 20 >= tonumber(most) then return 3 end
if owner and owner ~= key then call('HSET', owner, 'al', without(call('HGET', owner, 'al') or '')) end
call('HSET', key, 'al', own .. print_of_key)
call('SET', P .. 'a:' .. print_of_key, binding, 'PX', ms(life - (now - call('HGET', key, 'l'))))
return 0
""")

# fingerprint → the binding or nothing
RESOLVE = _script("""
local binding = call('GET', P .. 'a:' .. ARGV[5])
return binding and by_id(binding:sub(1, 16)) and binding
""")

# most clients and queues → how many were swept, how many clients are online
SWEEP = _script("""
local most = tonumber(ARGV[5])
local swept = math.max(sweep_clients(most), sweep_queues(most))
local since = text(now - online)
return {swept, call('ZCOUNT', P .. 'all', since, '+inf') - call('ZCOUNT', P .. 'new', since, '+inf')}
""")
