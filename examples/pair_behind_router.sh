#!/usr/bin/env bash
# A prefill server, a decode server and the Kairos router on this machine. Ctrl-C stops all three.
#
#   examples/pair_behind_router.sh MODEL [FLAG ...]
#
# FLAGs go to both servers. PREFILL_PORT, DECODE_PORT, BOOTSTRAP_PORT and ROUTER_PORT choose the
# ports. Without a GPU, `kairos cluster --kairos` starts the same with emulated servers.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
model=$1
shift
python=${PYTHON:-python3}
prefill=${PREFILL_PORT:-30001}
decode=${DECODE_PORT:-30002}
bootstrap=${BOOTSTRAP_PORT:-8998}
router=${ROUTER_PORT:-30000}

trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
trap 'exit 130' INT TERM

serve() { # ROLE PORT [FLAG ...]
  "$python" -m sglang.launch_server --model-path "$model" --host 127.0.0.1 --port "$2" \
    --kairos --disaggregation-mode "$1" "${@:3}" &
}
# The warm-up request of one server would need the other, which is not ready yet.
serve prefill "$prefill" --disaggregation-bootstrap-port "$bootstrap" --skip-server-warmup "$@"
serve decode "$decode" --skip-server-warmup "$@"
"$python" -m kairos router --port "$router" \
  --prefill "http://127.0.0.1:$prefill" "$bootstrap" --decode "http://127.0.0.1:$decode" &

echo "the router answers at http://127.0.0.1:$router once /ready says so" >&2
wait -n
