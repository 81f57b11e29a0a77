# What a break-glass package opens: everything, for an hour, under the eyes of the audit device. The AppRole of this name
# has one secret id, and that is in the package; opening it forces a rotation of it.
path "*" {
  capabilities = ["create", "read", "update", "patch", "delete", "list", "sudo"]
}
