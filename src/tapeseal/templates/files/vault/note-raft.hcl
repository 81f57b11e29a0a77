# Node @{node} of the raft cluster "@{name}": /etc/openbao/openbao.hcl or /etc/vault.d/vault.hcl of @{host}.
