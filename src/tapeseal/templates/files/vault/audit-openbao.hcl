# OpenBao takes audit devices from here alone. Where none can be written, it serves nothing.
audit "file" "main" {
  options {
    file_path = "@{log_directory}/@{node}.audit.log"
    mode      = "0600"
  }
}
