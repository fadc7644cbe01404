#!/usr/bin/env bash
# What a first try with compose.yaml needs before Envoy can start: an operator key, plans, an account, and a key for Envoy with
# the one scope `tollgate:check`. No key is printed, because container logs are kept. It can be run again: what is there stays.
set -euo pipefail
umask 077

DATA=${DATA:-/var/lib/tollgate}    # the database and the keys
EDGE=${EDGE:-/var/lib/edge}        # what Envoy reads
SETUP=${SETUP:-/setup}             # envoy.yaml and plans.toml
SECONDS_MAX=30

# The field `secret` of a JSON answer.
secret() { sed -n 's/.*"secret": *"\([^"]*\)".*/\1/p'; }

# keep FILE COMMAND...: writes the secret that the command answers with, whole or not at all.
keep() {
  local file=$1
  shift
  "$@" --output json 2>"$DATA/setup.log" | secret >"$file.new" || { cat "$DATA/setup.log" >&2; return 1; }
  [ -s "$file.new" ] || { echo "$*: no secret in the answer" >&2; return 1; }
  mv "$file.new" "$file"
}

if [ ! -s "$DATA/envoy.key" ]; then
  [ -s "$DATA/operator.key" ] || keep "$DATA/operator.key" tollgate bootstrap
  tollgate plans apply "$SETUP/plans.toml" --database "$TOLLGATE_DATABASE"

  # Accounts and keys are made by a server, so one runs while this does, on addresses that nobody else reaches.
  tollgate serve --grpc-addr 127.0.0.1:50051 --http-addr 127.0.0.1:8080 >"$DATA/setup-server.log" 2>&1 &
  server=$!
  trap 'kill "$server" 2>/dev/null || true' EXIT
  until tollgate health >/dev/null 2>&1; do
    if ! kill -0 "$server" 2>/dev/null || [ "$SECONDS" -ge "$SECONDS_MAX" ]; then
      cat "$DATA/setup-server.log" >&2
      exit 1
    fi
    sleep 0.2
  done

  export TOLLGATE_TOKEN_FILE=$DATA/operator.key
  tollgate accounts get acct_demo >/dev/null 2>&1 || tollgate accounts create --id acct_demo --name Demo --plan free
  # A key of the operator's own account may check the keys of all.
  keep "$DATA/envoy.key" tollgate keys create --account acct_operator --name "Envoy $(date -u +%FT%TZ)" --scope tollgate:check

  trap - EXIT
  kill "$server"
  wait "$server"
fi

# Anew each time, so that a change of envoy.yaml arrives. Envoy's own image has no shell to do it.
key=$(<"$DATA/envoy.key")
config=$(<"$SETUP/envoy.yaml")
rendered=${config//%ENVIRONMENT(TOLLGATE_TOKEN)%/$key}
rendered=${rendered//TOLLGATE_TOKEN_HERE/$key}
[ "$rendered" != "$config" ] || {
  echo "envoy.yaml has no place for the key: neither %ENVIRONMENT(TOLLGATE_TOKEN)% nor TOLLGATE_TOKEN_HERE" >&2
  exit 1
}
printf '%s\n' "$rendered" >"$EDGE/envoy.yaml.new"
mv "$EDGE/envoy.yaml.new" "$EDGE/envoy.yaml"
echo "ready: the operator key is in $DATA/operator.key, Envoy's configuration in $EDGE/envoy.yaml"
