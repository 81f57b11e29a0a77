storage "consul" {
  address       = "127.0.0.1:8501"
  scheme        = "https"
  path          = "@{name}/"
  tls_ca_file   = "@{tls_directory}/ca.pem"
  tls_cert_file = "@{tls_directory}/consul.pem"
  tls_key_file  = "@{tls_directory}/consul.key"
}
