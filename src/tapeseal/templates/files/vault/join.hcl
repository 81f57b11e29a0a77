  retry_join {
    leader_api_addr       = "https://@{host}:@{port}"
    leader_ca_cert_file   = "@{tls_directory}/ca.pem"
  }
