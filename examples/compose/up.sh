#!/usr/bin/env bash
# Starts the three containers of docker-compose.yml: certificates and
# configurations into .muster/compose, image, containers, and cluster.json once
# all are ready. make up calls it; COMPOSE names the compose program.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=$PWD/.muster/compose
muster=$PWD/bin/muster
compose="${COMPOSE:-docker-compose} -p muster"

# The folder is closed to others. The folders in it, which the containers get
# to see, are open, since the containers' user is not the one of this script.
mkdir -p "$dir"
chmod 700 "$dir"
if [ ! -f "$dir/ca.crt" ]; then
  echo "Making a CA, and a certificate for each node and for an operator"
  "$muster" tls ca --dir "$dir" >/dev/null 2>&1
fi
[ -f "$dir/operator.crt" ] || "$muster" tls issue --ca "$dir/ca.crt" --dir "$dir" --role operator >/dev/null 2>&1
[ -f "$dir/gossip.key" ] || (umask 077; head -c 32 /dev/urandom | base64 >"$dir/gossip.key")
[ -f "$dir/operator_token" ] ||
  (umask 077; printf 'muster_%s_%s\n' "$(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \n')" \
    "$(head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n')" >"$dir/operator_token")
for n in n1 n2 n3; do
  mkdir -p "$dir/$n"
  chmod 755 "$dir/$n"
  [ -f "$dir/$n/node.crt" ] || "$muster" tls issue --ca "$dir/ca.crt" --dir "$dir/$n" --node "$n" --out node >/dev/null 2>&1
  cp "$dir/ca.crt" "$dir/gossip.key" "$dir/operator_token" "$dir/$n/"
  cat >"$dir/$n/muster.yaml" <<YAML
node_id: $n
data_dir: /data
cluster: {trust_domain: muster, bootstrap_expect: 3, join: ["n1:7946", "n2:7946", "n3:7946"]}
listen: {control: "0.0.0.0:8443", policy: "0.0.0.0:8181", metrics: "0.0.0.0:9090", peer: "0.0.0.0:8300", gossip: "0.0.0.0:7946", dns: "0.0.0.0:8600"}
advertise: {control: "$n:8443", peer: "$n:8300", gossip: "$n:7946"}
tls: {ca: ca.crt, cert: node.crt, key: node.key}
gossip_key_file: gossip.key
operator_token_file: operator_token
YAML
  chmod 644 "$dir/$n"/*
done

mkdir -p bin/image/data
chmod 700 bin/image/data
rm -f "$dir/cluster.json"
docker build -q -t muster:local . >/dev/null
$compose up -d --no-build

export MUSTER_CACERT=$dir/ca.crt
addresses='' nodes=''
for i in 0 1 2; do
  n=n$((i + 1)) d=$((10 * i))
  addr=https://127.0.0.1:$((8443 + d))
  for try in $(seq 60); do
    "$muster" health --addr "$addr" --timeout 2s >/dev/null 2>&1 && break
    [ "$try" -lt 60 ] || { echo "$n did not become ready; its log:" >&2; $compose logs --tail 20 "$n" >&2; exit 1; }
    sleep 1
  done
  pid=$(docker inspect -f '{{.State.Pid}}' "$($compose ps -q "$n")")
  addresses+=${addresses:+,}$addr
  nodes+=${nodes:+,}$(printf '\n    {"id":"%s","pid":%s,"dir":"%s","control":"%s","policy":"https://127.0.0.1:%d","metrics":"http://127.0.0.1:%d","peer":"127.0.0.1:%d","gossip":"127.0.0.1:%d","dns":"127.0.0.1:%d"}' \
    "$n" "$pid" "$dir/$n" "$addr" $((8181 + d)) $((9090 + d)) $((8300 + d)) $((7946 + d)) $((8600 + d)))
done
umask 077
cat >"$dir/env" <<ENV
export MUSTER_ADDR='$addresses'
export MUSTER_CACERT='$dir/ca.crt'
export MUSTER_TOKEN='$(cat "$dir/operator_token")'
export MUSTER_CLIENT_CERT='$dir/operator.crt'
export MUSTER_CLIENT_KEY='$dir/operator.key'
ENV
printf '{\n  "ca":"%s","operator_token":"%s","client_cert":"%s","client_key":"%s",\n  "nodes":[%s\n  ]\n}\n' \
  "$dir/ca.crt" "$(cat "$dir/operator_token")" "$dir/operator.crt" "$dir/operator.key" "$nodes" >"$dir/cluster.json.new"
mv "$dir/cluster.json.new" "$dir/cluster.json"
echo "Three containers are ready. In your shell: . .muster/compose/env"
