"""Text in, text out: HTTP, processes, command line."""
