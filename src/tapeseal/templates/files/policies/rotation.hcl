# The rotation daemon in @{environment}: everything that the plan changes, and nothing else.

# Staged credentials, and what consumers say.
path "secret/data/tapeseal-rotation/*" {
  capabilities = ["create", "update", "read"]
}
path "secret/metadata/tapeseal-rotation/*" {
  capabilities = ["create", "update", "read", "list", "delete"]
}
path "secret/data/tapeseal-consumers/*" {
  capabilities = ["read"]
}
path "secret/metadata/tapeseal-consumers/*" {
  capabilities = ["read", "list"]
}

path "secret/data/@{environment}/*" {
  capabilities = ["create", "update", "patch", "read"]
}
path "secret/metadata/@{environment}/*" {
  capabilities = ["create", "update", "patch", "read", "list"]
}
path "secret/destroy/@{environment}/*" {
  capabilities = ["create", "update"]
}

path "database/rotate-role/@{environment}-*" {
  capabilities = ["create", "update"]
}
path "database/static-creds/@{environment}-*" {
  capabilities = ["read"]
}
path "database/static-roles/@{environment}-*" {
  capabilities = ["read"]
}

# Logins of these roles alone: whoever can make one for another role is that role.
path "auth/approle/role/trading-@{environment}/role-id" {
  capabilities = ["read"]
}
path "auth/approle/role/trading-@{environment}/secret-id" {
  capabilities = ["create", "update", "list"]
}
path "auth/approle/role/trading-@{environment}/secret-id/lookup" {
  capabilities = ["update"]
}
path "auth/approle/role/trading-@{environment}/secret-id-accessor/*" {
  capabilities = ["create", "update"]
}
path "auth/approle/role/risk-@{environment}/role-id" {
  capabilities = ["read"]
}
path "auth/approle/role/risk-@{environment}/secret-id" {
  capabilities = ["create", "update", "list"]
}
path "auth/approle/role/risk-@{environment}/secret-id/lookup" {
  capabilities = ["update"]
}
path "auth/approle/role/risk-@{environment}/secret-id-accessor/*" {
  capabilities = ["create", "update"]
}

path "pki/issue/@{environment}-*" {
  capabilities = ["create", "update"]
}
path "pki/sign/@{environment}-*" {
  capabilities = ["create", "update"]
}
path "pki/revoke" {
  capabilities = ["create", "update"]
}
# A certificate that was revoked is in the CRL at once, not with its next building.
path "pki/crl/rotate" {
  capabilities = ["read"]
}
path "pki/certs" {
  capabilities = ["list"]
}
path "pki/certs/+" {
  capabilities = ["list"]
}
path "pki/cert/*" {
  capabilities = ["read"]
}

path "ssh/sign/@{environment}-*" {
  capabilities = ["create", "update"]
}
path "ssh/config/ca" {
  capabilities = ["read"]
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
# To rewrap tapes, it opens and wraps their data keys.
path "transit/decrypt/@{environment}-tapes" {
  capabilities       = ["update"]
  allowed_parameters = { "ciphertext" = [], "context" = [] }
}
path "transit/encrypt/@{environment}-tapes" {
  capabilities       = ["update"]
  allowed_parameters = { "plaintext" = [], "context" = [] }
}
