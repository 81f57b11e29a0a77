# OpenBao takes audit devices from here alone. Where none can be written, it serves nothing. All nodes must say the same:
# one whose device differs from what the cluster has noted never takes over.
audit "file" "main" {
  options {
    file_path = "@{log_directory}/audit.log"
    mode      = "0600"
  }
}
