"""Layers from which the architectures are built."""
