-- Single spawns over the callers in LOAD_CALLERS (a file, a run id a line) in turn, each with a key of its own; as fast as
-- they are answered, or at LOAD_RATE a second for as long as there are connections that wait for no answer.
-- With LOAD_DRY_RUN it only asks what would be decided.
local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long us; } remit_time; int gettimeofday(remit_time *, void *);")

local callers = {}
for line in io.lines(os.getenv("LOAD_CALLERS")) do callers[#callers + 1] = line end
local salt = os.getenv("LOAD_SALT")
local rate = tonumber(os.getenv("LOAD_RATE"))
local clock, sent, due = ffi.new("remit_time"), 0, nil

wrk.method = "POST"
wrk.path = "/internal/orchestration/spawn-run" .. (os.getenv("LOAD_DRY_RUN") and "?dry_run=true" or "")
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("LOAD_TOKEN")

function request()
  sent = sent + 1
  return wrk.format(nil, nil, nil, string.format(
    '{"caller_run_id":"%s","target_agent_slug":"worker","scope_subset":["read"],"idempotency_key":"%s-%d",' ..
    '"mapped_input_payload":{"n":%d}}', callers[sent % #callers + 1], salt, sent, sent))
end

if rate then
  -- Milliseconds until the next request is due; whatever is late goes at once.
  function delay()
    ffi.C.gettimeofday(clock, nil)
    local now = tonumber(clock.s) * 1000 + tonumber(clock.us) / 1000
    due = due and due + 1000 / rate or now
    return math.max(0, math.floor(due - now + 0.5))
  end
end
