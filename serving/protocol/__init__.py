"""Wire formats of the public HTTP API."""
