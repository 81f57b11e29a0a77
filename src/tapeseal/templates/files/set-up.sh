#!/usr/bin/env bash
# Makes mounts, policies, keys and roles of "@{name}" on an unsealed server; what is there already stays, so that it can be run
# again. BAO_ADDR, BAO_CACERT and BAO_TOKEN (or their VAULT_ names) say where and as whom: as root, once.
set -euo pipefail
cd "$(dirname "$0")"
vault=${VAULT:-@{command}}

enable() { # secrets|auth TYPE PATH: unless something is mounted there
  local mounted
  mounted=$("$vault" "$1" list -format=json)
  [[ $mounted == *"\"$3/\":"* ]] || "$vault" "$1" enable -path="$3" "${@:4}" "$2"
}

@{enable_audit}
enable secrets kv secret -version=2
enable secrets transit transit
enable secrets database database
enable secrets pki pki
enable secrets ssh ssh
enable auth approle approle

# Old versions stay readable for a roll-back, and no longer.
"$vault" write secret/config max_versions=10 >/dev/null
"$vault" secrets tune -max-lease-ttl=8760h pki >/dev/null
# A token that may use a key must not make one by a slip of the name.
"$vault" write transit/config/keys disable_upsert=true >/dev/null

for policy in policies/*.hcl; do
  name=$(basename "$policy" .hcl)
  "$vault" policy write "$name" "$policy" >/dev/null
  # An hour at a time, a day at most; a secret id for a month, after which rotation has made the next.
  ttl=1h max=24h secret_id=@{secret_id_ttl}
  if [ "$name" = break-glass ]; then max=1h secret_id=0; fi
  "$vault" write "auth/approle/role/$name" token_policies="$name" token_ttl="$ttl" token_max_ttl="$max" \
    secret_id_ttl="$secret_id" token_no_default_policy=false @{cidrs}>/dev/null
done

for environment in @{environments}; do
  "$vault" read "transit/keys/$environment-tapes" >/dev/null 2>&1 ||
    "$vault" write transit/keys/"$environment-tapes" type=aes256-gcm96 derived=true >/dev/null
done
echo "Set up: $("$vault" policy list | wc -l) policies, keys for @{environments}. Next: database, PKI and SSH (README.md)."
