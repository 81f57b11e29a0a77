# How it unseals. As it stands: by custodians, m of n, with `tapeseal vault unseal` on each node after each start.
# By a KMS instead, which takes a quorum's place by an IAM policy (kms:Encrypt, kms:Decrypt and kms:DescribeKey of this key):
#
# seal "awskms" {
#   region     = "@{region}"
#   kms_key_id = "alias/@{name}-unseal"
# }
