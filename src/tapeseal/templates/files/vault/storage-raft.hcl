storage "raft" {
  path                   = "@{data_directory}/@{node}"
  node_id                = "@{node}"
  performance_multiplier = 1
@{joins}}
