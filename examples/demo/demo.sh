#!/usr/bin/env bash
# A walk through muster on this machine: needs only bin/muster (make build).
set -euo pipefail
cd "$(dirname "$0")/../.."
muster=$PWD/bin/muster
here=$PWD/examples/demo
dir=$(mktemp -d "${TMPDIR:-/tmp}/muster-demo.XXXXXX")
started=()

stop_all() {
  for pid in "${started[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
}
clean_up() {
  status=$?
  trap - EXIT
  stop_all
  if [ "$status" -ne 0 ]; then
    echo
    echo "The demo broke off. What the nodes said last:"
    tail -n 5 "$dir"/dev.log "$dir"/n*/muster.log 2>/dev/null || true
  fi
  rm -rf "$dir"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

step=0
say() { printf '\n%s\n' "$*"; }
title() {
  step=$((step + 1))
  printf '\n== %d. %s\n' "$step" "$1"
}
run() { # shows a command, then does it
  local shown='' word
  for word; do
    case $word in *' '*) word="'$word'" ;; esac
    shown+=" $word"
  done
  printf '   $ muster%s\n' "$(printf '%s' "$shown" | sed "s|$here/||g; s|$PWD/||g")"
  "$muster" "$@" 2>&1 | sed 's/^/     /'
}
# Asks cluster.json for something of one node.
of() { sed -n "/\"id\": \"$1\"/,/}/s/^ *\"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p" "$dir/cluster.json"; }
leader() { "$muster" cluster status -o json | sed -n 's/^  "leader": "\(.*\)",$/\1/p'; }

cat <<'TEXT'
muster keeps the APIs of an organisation in one place: the services, the
definitions of their versions, the instances that run now, and the rules for
who may do what. All of it lives in one replicated log on several nodes, so
that any node can answer and any one of them may die.
TEXT

title "Start three nodes on this machine"
say "   muster dev makes a CA and certificates and starts three processes. Each has
   its own data; together they elect a leader."
"$muster" dev --dir "$dir" --port-base 0 >"$dir/dev.out" 2>"$dir/dev.log" &
started+=($!)
dev=$!
for _ in $(seq 600); do
  [ -f "$dir/cluster.json" ] && break
  kill -0 "$dev" 2>/dev/null || { cat "$dir/dev.log"; exit 1; }
  sleep 0.1
done
# shellcheck disable=SC1091
. "$dir/env"
run cluster status

title "Load a policy"
say "   Who may register what is written in Rego, the language of Open Policy Agent,
   and evaluated inside each node. The example says, among other things, that a
   service needs an owner. Its tests run before any cluster sees it."
run policy check examples/policies/*.rego
run policy push examples/policies/*.rego --activate --note 'a service needs an owner'

title "Give a team its token"
say "   Team Checkout gets a token for the namespace shop, which may publish there and
   nowhere else. From here on we are that team."
MUSTER_TOKEN=$("$muster" token create --role publisher --namespace shop --ttl 1h -o json | sed -n 's/^ *"token": "\(.*\)",\{0,1\}$/\1/p')
operator=$(cat "$dir/operator_token")
unset MUSTER_CLIENT_CERT MUSTER_CLIENT_KEY
export MUSTER_TOKEN MUSTER_NAMESPACE=shop
echo "   \$ muster token create --role publisher --namespace shop --ttl 1h"

title "Register a service, its OpenAPI definition and two instances through node n1"
all=$MUSTER_ADDR
MUSTER_ADDR=$(of n1 control)
run apply -f "$here/payments.yaml"
say "   The definition was parsed: its routes are part of the record."
run get versions payments

title "Find the instances through node n3"
say "   Any node answers. --consistency linearizable makes sure that n3 has everything
   that was acknowledged anywhere before the question."
MUSTER_ADDR=$(of n3 control)
run discover payments --consistency linearizable

title "Be refused"
say "   coupons has no owner. The policy says no, and says why; exit code 3 means denied."
set +e
printf '   $ muster apply -f nobody.yaml\n'
"$muster" apply -f "$here/nobody.yaml" >"$dir/refused" 2>&1
code=$?
set -e
sed "s|$here/||g; s/^/     /" "$dir/refused"
echo "     (exit code $code)"
[ "$code" -eq 3 ] || exit 1

title "Kill the leader"
MUSTER_ADDR=$all
dead=$(MUSTER_TOKEN=$operator leader)
say "   $dead leads. kill -9 gives it no time to say goodbye."
kill -9 "$(of "$dead" pid)"
begin=$(date +%s%N)
run apply -f "$here/payments-3.yaml"
echo "     (the next change was acknowledged $((($(date +%s%N) - begin) / 1000000)) ms after the kill)"
run discover payments --consistency linearizable

title "Bring the dead node back"
say "   It has kept its data, and catches up with what it missed before it answers."
"$muster" dev --dir "$dir" --only "$dead" >>"$dir/dev.log" 2>&1 &
started+=($!)
for try in $(seq 300); do
  "$muster" health --addr "$(of "$dead" control)" --timeout 1s >/dev/null 2>&1 && break
  [ "$try" -lt 300 ] || { echo "   $dead did not come back"; exit 1; }
  sleep 0.1
done
MUSTER_TOKEN=$operator run cluster status
hashes=$(MUSTER_TOKEN=$operator "$muster" cluster status -o json | grep '"hash"' | sort -u | wc -l)
[ "$hashes" -eq 1 ] || { echo "   the nodes' states differ"; exit 1; }
say "   All three have the same revision and the same hash of their state."

title "Stop everything"
pids=$(sed -n 's/^ *"pid": \([0-9]*\),$/\1/p' "$dir/cluster.json")
stop_all
for pid in $pids; do
  ! kill -0 "$pid" 2>/dev/null || { echo "   process $pid is still there"; exit 1; }
done
say "   Nothing is left running, and nothing on disk. Your own cluster: bin/muster dev,
   then README.md, \"The first five minutes\"."
