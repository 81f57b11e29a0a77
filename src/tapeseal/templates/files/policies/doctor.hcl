# `tapeseal doctor` looks at everything that is set up, and reads no secret.

path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "sys/audit" {
  capabilities = ["read", "sudo"]
}
path "sys/policies/acl" {
  capabilities = ["list"]
}
path "sys/policies/acl/*" {
  capabilities = ["read"]
}
path "auth/token/accessors/" {
  capabilities = ["list", "sudo"]
}
path "auth/token/lookup-accessor" {
  capabilities = ["update"]
}
path "sys/auth" {
  capabilities = ["read"]
}
path "sys/mounts" {
  capabilities = ["read"]
}
path "auth/approle/role" {
  capabilities = ["list"]
}
path "auth/approle/role/*" {
  capabilities = ["read"]
}
path "transit/keys" {
  capabilities = ["list"]
}
path "transit/keys/*" {
  capabilities = ["read"]
}
path "secret/config" {
  capabilities = ["read"]
}
path "database/roles" {
  capabilities = ["list"]
}
path "database/roles/*" {
  capabilities = ["read"]
}
path "pki/certs" {
  capabilities = ["list"]
}
