"""Who runs next, and which page belongs to whom. Host only."""
