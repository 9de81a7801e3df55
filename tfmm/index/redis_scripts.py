"""What the index store does inside Redis: each script is one atomic step, and sees one state of the data.

Keys stand under one prefix `P`:

    P:meta            hash: `format`, `sequence` (number of the newest change), `encoder` (number of the newest encoder)
    P:encoders        hash: number -> JSON [modality, version, dim, layout]
    P:numbers         hash: modality NUL version -> number
    P:active          hash: modality -> number
    P:rows:<number>   hash: item id -> float32 scale, int64 sequence, int64 event time, int8 values
    P:changes:<number> sorted set: item ids by sequence
    P:catalog:<number> hash: item id -> fingerprint of what the catalog said the last time
    P:since           hash: number -> number of the newest change when the encoder was registered
    P:withdrawals     hash: item id -> event time
    P:withdrawn       sorted set: withdrawn items whose rows were compacted, by the newest sequence of these rows
    P:positions       hash: source of events -> position
    P:letters         hash: JSON [source, position, reason] -> 0, or 1 and the payload
    P:id_types        hash: field -> int64 or string

Item ids are 8 bytes. Numbers of Lua are float64, exact to 2^53: sequences and times in microseconds until 2255.
Positions are compared as text.
"""

COMMON = """
local P = KEYS[1]
local function key(...) return table.concat({P, ...}, ':') end
local function text(number) return string.format('%.0f', number) end
local function int(blob, i) return (struct.unpack('<i8', blob, (i - 1) * 8 + 1)) end
local function id(blob, i) return string.sub(blob, (i - 1) * 8 + 1, i * 8) end
local function number_of(name, field) return tonumber(redis.call('HGET', key(name), field) or nil) end
"""

_REGISTER = """
-- Returns the dim of an encoder's rows where it is another one, else nil.
local function dim_error(name, dim)
  local number = redis.call('HGET', key('numbers'), name)
  if not number then return nil end
  local known = cjson.decode(redis.call('HGET', key('encoders'), number))[3]
  if known ~= dim then return known end
end
local function register(name, entry)
  local number = redis.call('HGET', key('numbers'), name)
  if number then return number end
  local modality, is_first = cjson.decode(entry)[1], true
  for _, other in ipairs(redis.call('HVALS', key('encoders'))) do
    if cjson.decode(other)[1] == modality then is_first = false end
  end
  number = text(redis.call('HINCRBY', key('meta'), 'encoder', 1))
  redis.call('HSET', key('encoders'), number, entry)
  redis.call('HSET', key('numbers'), name, number)
  redis.call('HSET', key('since'), number, redis.call('HGET', key('meta'), 'sequence'))
  if is_first then redis.call('HSET', key('active'), modality, number) end
  return number
end
"""

# Returns {{numbers and entries, one after another}, numbers of the active ones}.
ENCODERS = f"""{COMMON}
return {{redis.call('HGETALL', key('encoders')), redis.call('HVALS', key('active'))}}
"""

# ARGV: name, entry. Returns the dim that is known where it differs, else nil.
REGISTER = f"""{COMMON}{_REGISTER}
local known = dim_error(ARGV[1], cjson.decode(ARGV[2])[3])
if known then return known end
register(ARGV[1], ARGV[2])
"""

# ARGV: number of tables; per table name, entry, ids, rows, scales, times, given, catalog times, fingerprints (the last
# three may be empty); ids and times of withdrawals; number of dead letters, per letter key and value; number of
# positions, per position source and position.
# Returns {-table, known dim} where a dim differs, and nothing has been written; else {changed per table, withdrawn, ids
# of which something newer is known}.
APPLY = f"""{COMMON}{_REGISTER}
local at = 0
local function take() at = at + 1; return ARGV[at] end
local older, seen = {{}}, {{}}
local function is_older(item)
  if not seen[item] then seen[item] = true; table.insert(older, item) end
end

-- Returns `row`, with what is not given taken from `old`.
local function blend(row, old, given)
  local parts, from = {{}}, 1
  while from <= #row do
    local flag = string.byte(given, from)
    local other = string.find(given, string.char(1 - flag), from, true) or #row + 1
    table.insert(parts, string.sub(flag == 1 and row or old, from, other - 1))
    from = other
  end
  return table.concat(parts)
end

local sequence = number_of('meta', 'sequence')
local function write(number, dim, t)
  local rows, changes, catalog = key('rows', number), key('changes', number), key('catalog', number)
  local changed = 0
  for i = 1, #t.ids / 8 do
    local item, time = id(t.ids, i), int(t.times, i)
    local row, scale = string.sub(t.rows, (i - 1) * dim + 1, i * dim), string.sub(t.scales, i * 4 - 3, i * 4)
    local old, old_scale, old_sequence, old_time, old_row = redis.call('HGET', rows, item)
    if old then
      old_sequence, old_time = struct.unpack('<i8i8', old, 5)
      old_scale, old_row = string.sub(old, 1, 4), string.sub(old, 21)
    end
    local is_there = old and struct.unpack('<f', old_scale) ~= 0
    local withdrawn = number_of('withdrawals', item)
    if t.catalog ~= '' and int(t.catalog, i) ~= 0 then
      local said, last = id(t.said, i), redis.call('HGET', catalog, item)
      local is_known = is_there or not (old or withdrawn)
      if last and last ~= said and is_known then time = math.max(time, int(t.catalog, i)) end
      if last ~= said then redis.call('HSET', catalog, item, said) end
    end
    if is_there and t.given ~= '' then row = blend(row, old_row, string.sub(t.given, (i - 1) * dim + 1, i * dim)) end
    local is_same = old and old_scale == scale and old_row == row
    if withdrawn and time <= withdrawn then
      if time < withdrawn then is_older(item) end
    elseif old and old_time > time then
      is_older(item)
    elseif is_same and old_time == time then
      -- nothing to write down
    elseif is_same then
      redis.call('HSET', rows, item, scale .. struct.pack('<i8i8', old_sequence, time) .. row)
    else
      sequence, changed = sequence + 1, changed + 1
      redis.call('HSET', rows, item, scale .. struct.pack('<i8i8', sequence, time) .. row)
      redis.call('ZADD', changes, text(sequence), item)
    end
  end
  return changed
end

local tables = {{}}
for n = 1, tonumber(take()) do
  local t = {{name = take(), entry = take(), ids = take(), rows = take(), scales = take(), times = take(),
              given = take(), catalog = take(), said = take()}}
  t.dim = cjson.decode(t.entry)[3]
  local known = dim_error(t.name, t.dim)
  for m = 1, n - 1 do
    if tables[m].name == t.name and tables[m].dim ~= t.dim then known = tables[m].dim end
  end
  if known then return {{-n, known}} end
  tables[n] = t
end
local result = {{}}
for n, t in ipairs(tables) do result[n] = write(register(t.name, t.entry), t.dim, t) end

local ids, times, withdrawn = take(), take(), 0
if #ids > 0 then
  local numbers = redis.call('HKEYS', key('encoders'))
  table.sort(numbers, function(a, b) return tonumber(a) < tonumber(b) end)
  for _, number in ipairs(numbers) do
    local dim = cjson.decode(redis.call('HGET', key('encoders'), number))[3]
    local count = #ids / 8
    withdrawn = withdrawn + write(number, dim, {{
      ids = ids, rows = string.rep('\\0', dim * count), scales = string.rep('\\0', 4 * count), times = times,
      given = '', catalog = '', said = ''}})
  end
  for i = 1, #ids / 8 do
    local time = math.max(int(times, i), number_of('withdrawals', id(ids, i)) or int(times, i))
    redis.call('HSET', key('withdrawals'), id(ids, i), text(time))
  end
end
redis.call('HSET', key('meta'), 'sequence', text(sequence))
for _ = 1, tonumber(take()) do redis.call('HSET', key('letters'), take(), take()) end
for _ = 1, tonumber(take()) do
  local source, position = take(), take()
  local known = redis.call('HGET', key('positions'), source)
  if not known or #position > #known or (#position == #known and position > known) then
    redis.call('HSET', key('positions'), source, position)
  end
end
return {{result, withdrawn, older}}
"""

# ARGV: name, modality. Returns whether there is such an encoder, which is now the active one.
ACTIVATE = f"""{COMMON}
local number = redis.call('HGET', key('numbers'), ARGV[1])
if number then redis.call('HSET', key('active'), ARGV[2], number) end
return number and 1 or 0
"""

# ARGV: name, modality. Returns the number of rows that are gone, -1 where there is no such encoder.
FORGET = f"""{COMMON}
local number = redis.call('HGET', key('numbers'), ARGV[1])
if not number then return -1 end
local count = redis.call('HLEN', key('rows', number))
redis.call('UNLINK', key('rows', number), key('changes', number), key('catalog', number))
redis.call('HDEL', key('numbers'), ARGV[1])
redis.call('HDEL', key('encoders'), number)
redis.call('HDEL', key('since'), number)
if redis.call('HGET', key('active'), ARGV[2]) == number then redis.call('HDEL', key('active'), ARGV[2]) end
return count
"""

# ARGV: field and type, one after another. Returns {{field, known type}} where one differs, and nothing was written.
KEEP_ID_TYPES = f"""{COMMON}
for a = 1, #ARGV, 2 do
  local known = redis.call('HGET', key('id_types'), ARGV[a])
  if known and known ~= ARGV[a + 1] then return {{ARGV[a], known}} end
end
for a = 1, #ARGV, 2 do redis.call('HSET', key('id_types'), ARGV[a], ARGV[a + 1]) end
return {{}}
"""
