-- Sends requests of equal length from a file in order, and prints the counts.
-- Each request is sliced when needed: a table of 100,000 similar strings hangs LuaJIT's interning.
local blob, size, count, at = "", 0, 0, 0

function init(args)
   local file = assert(io.open(args[1], "rb"))
   blob = file:read("*a")
   file:close()
   size = tonumber(args[2])
   count = math.floor(#blob / size)
   at = tonumber(args[3]) % count
end

function request()
   local from = at * size
   at = (at + 1) % count
   return blob:sub(from + 1, from + size)
end

function done(summary, latency, requests)
   local e = summary.errors
   print(string.format(
      '\n{"requests": %d, "us": %d, "bytes": %d, "refused": %d, "broken": %d, "p50": %d, "p99": %d}',
      summary.requests, summary.duration, summary.bytes, e.status,
      e.connect + e.read + e.write + e.timeout,
      latency:percentile(50), latency:percentile(99)))
end
