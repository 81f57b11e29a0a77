# Vault takes audit devices by its API: set-up.sh enables one that writes to @{log_directory}/audit.log.
