"""Thin HTTP handlers."""
