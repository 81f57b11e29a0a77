# Node @{node} of the cluster "@{name}" with its data in Consul. HashiCorp's own server takes this, OpenBao does not; tapeseal's
# tests have checked its syntax, and never run it. CONSUL_HTTP_TOKEN in the environment of the service is the token for Consul.
cluster_name = "@{name}"
api_addr     = "https://@{host}:@{port}"
cluster_addr = "https://@{host}:@{cluster_port}"
ui           = false

listener "tcp" {
  address         = "@{listen}:@{port}"
  cluster_address = "@{listen}:@{cluster_port}"
  tls_cert_file   = "@{tls_directory}/server.pem"
  tls_key_file    = "@{tls_directory}/server.key"
  tls_min_version = "tls13"

  max_request_size     = 4194304
  max_request_duration = "30s"

  telemetry {
    unauthenticated_metrics_access = false
  }
}

storage "consul" {
  address       = "127.0.0.1:8501"
  scheme        = "https"
  path          = "@{name}/"
  tls_ca_file   = "@{tls_directory}/ca.pem"
  tls_cert_file = "@{tls_directory}/consul.pem"
  tls_key_file  = "@{tls_directory}/consul.key"
}

telemetry {
  prometheus_retention_time = "24h"
  disable_hostname          = true
}

@{audit}
@{seal}
