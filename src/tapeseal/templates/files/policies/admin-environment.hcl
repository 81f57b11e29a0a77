
path "secret/data/@{environment}/*" {
  capabilities = ["create", "update", "patch", "delete"]
}
path "secret/metadata/@{environment}/*" {
  capabilities = ["create", "update", "read", "list"]
}
path "secret/delete/@{environment}/*" {
  capabilities = ["create", "update"]
}
path "secret/undelete/@{environment}/*" {
  capabilities = ["create", "update"]
}
path "secret/destroy/@{environment}/*" {
  capabilities = ["create", "update"]
}
path "transit/keys/@{environment}-tapes" {
  capabilities = ["read"]
}
path "transit/keys/@{environment}-tapes/rotate" {
  capabilities = ["create", "update"]
}
path "transit/keys/@{environment}-tapes/config" {
  capabilities       = ["create", "update"]
  allowed_parameters = { "min_decryption_version" = [], "min_encryption_version" = [] }
}
