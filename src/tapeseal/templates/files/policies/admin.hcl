# Administrators: write secrets that they cannot read, retire keys, hand out logins, and cut off whoever was compromised.
# They change no policy and no auth method: whoever does that is root in all but name, and comes by break-glass.
@{admin_environments}
# Logins: wrapped secret ids alone, which nobody reads on their way.
path "auth/approle/role/+/secret-id" {
  capabilities     = ["create", "update"]
  min_wrapping_ttl = "1s"
  max_wrapping_ttl = "300s"
}
path "auth/approle/role/+/role-id" {
  capabilities = ["read"]
}
path "auth/approle/role/+/secret-id-accessor/destroy" {
  capabilities = ["create", "update"]
}
# Not the one that opens everything, which takes a quorum.
path "auth/approle/role/break-glass/*" {
  capabilities = ["deny"]
}

# Immediate revocation on compromise.
path "sys/leases/lookup/*" {
  capabilities = ["list", "sudo"]
}
path "sys/leases/revoke-prefix/*" {
  capabilities = ["create", "update", "sudo"]
}
path "auth/token/revoke-accessor" {
  capabilities = ["create", "update"]
}
# Whose tokens there are.
path "auth/token/accessors" {
  capabilities = ["list", "sudo"]
}
path "auth/token/lookup-accessor" {
  capabilities = ["create", "update"]
}
# Somebody who leaves; nothing else of who is who.
path "identity/entity/name" {
  capabilities = ["list"]
}
path "identity/entity/name/+" {
  capabilities       = ["read", "update"]
  allowed_parameters = { "disabled" = [] }
}
path "pki/revoke" {
  capabilities = ["create", "update"]
}
path "pki/crl/rotate" {
  capabilities = ["read"]
}
path "pki/certs/+" {
  capabilities = ["list"]
}
path "pki/cert/*" {
  capabilities = ["read"]
}
path "ssh/config/ca" {
  capabilities = ["read"]
}

# What there is to see.
path "sys/policies/acl/*" {
  capabilities = ["read"]
}
path "sys/policies/acl" {
  capabilities = ["list"]
}
path "sys/metrics" {
  capabilities = ["read"]
}
path "sys/audit" {
  capabilities = ["read", "sudo"]
}
