"""What the operator wants: launch files, their schema and their resolution."""
