# Node @{node} of the cluster "@{name}" with its data in Consul. HashiCorp's own server takes this, OpenBao does not; tapeseal's
# tests have checked its syntax, and never run it. CONSUL_HTTP_TOKEN in the environment of the service is the token for Consul.
