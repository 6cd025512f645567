-- Posts to CALLS_PATH for the callers in CALLS_FILE (a line each: run id, token) in turn, each with a key of its own.
local callers = {}
for line in io.lines(os.getenv("CALLS_FILE")) do
  local run, token = line:match("^(%S+) (%S+)$")
  callers[#callers + 1] = {
    run = run,
    headers = {["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. token},
  }
end
local path, salt = os.getenv("CALLS_PATH"), os.getenv("CALLS_SALT")
local sent = 0

function request()
  sent = sent + 1
  local caller = callers[sent % #callers + 1]
  return wrk.format("POST", path, caller.headers, string.format(
    '{"caller_run_id":"%s","target_agent_slug":"worker","scope_subset":["read"],"idempotency_key":"%s-%d",' ..
    '"mapped_input_payload":{"n":%d}}', caller.run, salt, sent, sent))
end
