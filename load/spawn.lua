-- Single spawns over the callers in LOAD_CALLERS (a file, a run id a line) in turn, each with a key of its own.
local callers = {}
for line in io.lines(os.getenv("LOAD_CALLERS")) do callers[#callers + 1] = line end
local salt = os.getenv("LOAD_SALT")
local sent = 0

wrk.method = "POST"
wrk.path = "/internal/orchestration/spawn-run"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("LOAD_TOKEN")

function request()
  sent = sent + 1
  return wrk.format(nil, nil, nil, string.format(
    '{"caller_run_id":"%s","target_agent_slug":"worker","scope_subset":["read"],"idempotency_key":"%s-%d",' ..
    '"mapped_input_payload":{"n":%d}}', callers[sent % #callers + 1], salt, sent, sent))
end
