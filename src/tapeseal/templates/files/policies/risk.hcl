# Risk in @{environment}: opens the tapes of trading, reads its own secrets, and makes no data keys.

path "transit/decrypt/@{environment}-tapes" {
  capabilities       = ["update"]
  allowed_parameters = { "ciphertext" = [], "context" = [] }
}

path "secret/data/@{environment}/risk/*" {
  capabilities = ["read"]
}
path "secret/metadata/@{environment}/risk/*" {
  capabilities = ["read", "list"]
}

path "database/creds/@{environment}-risk" {
  capabilities = ["read"]
}
path "sys/leases/renew" {
  capabilities = ["update"]
}
path "sys/leases/revoke" {
  capabilities = ["update"]
}

path "secret/data/tapeseal-consumers/@{environment}-*" {
  capabilities = ["create", "update", "read"]
}
