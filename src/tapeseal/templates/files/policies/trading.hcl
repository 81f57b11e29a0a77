# Trading in @{environment}: recorders and gateways. They make data keys that they cannot open, and read what is theirs.

path "transit/keys/@{environment}-tapes" {
  capabilities = ["read"]
}
path "transit/datakey/plaintext/@{environment}-tapes" {
  capabilities       = ["update"]
  allowed_parameters = { "bits" = [], "context" = [] }
}
# Without a context nothing opens: a keyring proves that the key is a derived one.
path "transit/decrypt/@{environment}-tapes" {
  capabilities       = ["update"]
  allowed_parameters = { "ciphertext" = [] }
}

path "secret/data/@{environment}/trading/*" {
  capabilities = ["read"]
}
path "secret/metadata/@{environment}/trading/*" {
  capabilities = ["read", "list"]
}

path "database/creds/@{environment}-trading" {
  capabilities = ["read"]
}
path "sys/leases/renew" {
  capabilities = ["update"]
}
path "sys/leases/revoke" {
  capabilities = ["update"]
}

path "pki/issue/@{environment}-trading" {
  capabilities = ["create", "update"]
}

# Where a consumer says which version of a secret it uses.
path "secret/data/tapeseal-consumers/@{environment}-*" {
  capabilities = ["create", "update", "read"]
}
