"""What the index store reads and compacts inside Redis; keys are those of `redis_scripts`."""

from tfmm.index.redis_scripts import COMMON

_WITHDRAWN = """
local function since(number) return tonumber(redis.call('HGET', key('since'), number) or 0) end
local function next_of(name, after, count)
  return redis.call('ZRANGEBYSCORE', name, '(' .. text(after), '+inf', 'WITHSCORES', 'LIMIT', 0, count)
end

-- Returns ids and sequences, one after another, of at most `count` items that are withdrawn after a sequence, and whose
-- row of an encoder was compacted; those that came back have one.
local function withdrawn_of(number, after, count)
  local result, from = {}, math.max(after, since(number))
  while #result < 2 * count do
    local found = next_of(key('withdrawn'), from, count)
    for i = 1, #found, 2 do
      if #result < 2 * count and redis.call('HEXISTS', key('rows', number), found[i]) == 0 then
        table.insert(result, found[i])
        table.insert(result, found[i + 1])
      end
    end
    if #found < 2 * count then break end
    from = tonumber(found[#found])
  end
  return result
end
"""

# ARGV: most changes per encoder; per encoder its number and the sequence after which to read.
# Returns per encoder {ids, values}, by ascending sequence; false where there is no such encoder any more.
CHANGES = f"""{COMMON}{_WITHDRAWN}
local result, most = {{}}, tonumber(ARGV[1])
for a = 2, #ARGV, 2 do
  local number, after, ids, values = ARGV[a], tonumber(ARGV[a + 1]), {{}}, {{}}
  local entry = redis.call('HGET', key('encoders'), number)
  if not entry then return false end
  local own, kept, gone, i, j = next_of(key('changes', number), after, most), {{}}, {{}}, 1, 1
  for from = 1, #own, 2000 do
    local some = {{}}
    for at = from, math.min(from + 1998, #own), 2 do table.insert(some, own[at]) end
    for _, value in ipairs(redis.call('HMGET', key('rows', number), unpack(some))) do table.insert(kept, value) end
  end
  if most > 0 then gone = withdrawn_of(number, after, most) end
  local nothing = string.rep('\\0', cjson.decode(entry)[3])
  while #ids < most and (own[i] or gone[j]) do
    if not gone[j] or (own[i] and tonumber(own[i + 1]) < tonumber(gone[j + 1])) then
      table.insert(ids, own[i])
      table.insert(values, kept[(i + 1) / 2])
      i = i + 2
    else
      local time = number_of('withdrawals', gone[j])
      table.insert(ids, gone[j])
      table.insert(values, struct.pack('<fi8i8', 0, tonumber(gone[j + 1]), time) .. nothing)
      j = j + 2
    end
  end
  table.insert(result, {{ids, values}})
end
return result
"""

# ARGV: number, sequence. Returns how many changes come after the sequence.
LAG = f"""{COMMON}{_WITHDRAWN}
local count = redis.call('ZCOUNT', key('changes', ARGV[1]), '(' .. ARGV[2], '+inf')
return count + #withdrawn_of(ARGV[1], tonumber(ARGV[2]), 1000000000) / 2
"""

# ARGV: number. Returns the newest sequence of an encoder as text, 0 where there is none.
LAST = f"""{COMMON}{_WITHDRAWN}
local found = redis.call('ZREVRANGE', key('changes', ARGV[1]), 0, 0, 'WITHSCORES')
local newest, from = tonumber(found[2] or 0), '+inf'
while true do
  local gone = redis.call('ZREVRANGEBYSCORE', key('withdrawn'), from, '(' .. text(math.max(newest, since(ARGV[1]))),
                          'WITHSCORES', 'LIMIT', 0, 100)
  for i = 1, #gone, 2 do
    if redis.call('HEXISTS', key('rows', ARGV[1]), gone[i]) == 0 then return text(tonumber(gone[i + 1])) end
  end
  if #gone < 200 then return text(newest) end
  from = '(' .. gone[#gone]
end
"""

# ARGV: number, sequence after which to read, most changes. Returns the last sequence that was read as text, or nil
# where none is left, and the ids among them of items that are not withdrawn.
LIVE = f"""{COMMON}{_WITHDRAWN}
local own, ids = next_of(key('changes', ARGV[1]), tonumber(ARGV[2]), ARGV[3]), {{}}
for i = 1, #own, 2 do
  local value = redis.call('HGET', key('rows', ARGV[1]), own[i])
  if struct.unpack('<f', value) ~= 0 then table.insert(ids, own[i]) end
end
if #own == 0 then return {{false, ids}} end
return {{text(tonumber(own[#own])), ids}}
"""

# ARGV: ids of withdrawn items. Deletes their rows where they have not come back; returns the number of rows.
RELEASE = f"""{COMMON}
local count, numbers = 0, redis.call('HKEYS', key('encoders'))
for _, item in ipairs(ARGV) do
  local newest = 0
  for _, number in ipairs(numbers) do
    local value = redis.call('HGET', key('rows', number), item)
    if value and struct.unpack('<f', value) == 0 and redis.call('HEXISTS', key('withdrawals'), item) == 1 then
      newest = math.max(newest, (struct.unpack('<i8', value, 5)))
      redis.call('HDEL', key('rows', number), item)
      redis.call('ZREM', key('changes', number), item)
      count = count + 1
    end
  end
  if newest > 0 then redis.call('ZADD', key('withdrawn'), 'GT', text(newest), item) end
end
if count > 0 then redis.call('HSET', key('meta'), 'format', '2') end
return count
"""
