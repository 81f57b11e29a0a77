@{storage_note}
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

  # What an archive of records sends is small; what is large is an attack or a mistake.
  max_request_size     = 4194304
  max_request_duration = "30s"

  # Metrics are for tokens with read on sys/metrics alone: names of paths tell what is traded where.
  telemetry {
    unauthenticated_metrics_access = false
  }
}

@{storage_block}
telemetry {
  prometheus_retention_time = "24h"
  disable_hostname          = true
}

@{audit}
@{seal}
