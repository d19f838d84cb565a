"""The definition of each rule by which a unit multiplies and adds, one output at a time."""
