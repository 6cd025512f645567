-- Completes the runs in LOAD_LEASES (a file, a run id and its lease a line), each once, then the last one again and again.
local leases = {}
for line in io.lines(os.getenv("LOAD_LEASES")) do leases[#leases + 1] = line end
local sent = 0

wrk.method = "POST"
wrk.path = "/work/complete"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("LOAD_TOKEN")

function request()
  sent = sent + 1
  local run, lease = leases[math.min(sent, #leases)]:match("(%S+) (%S+)")
  return wrk.format(nil, nil, nil, string.format(
    '{"run_id":"%s","lease":"%s","status":"completed","output":{"n":%d}}', run, lease, sent))
end
