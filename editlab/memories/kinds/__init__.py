"""Kinds of side memory, one module each."""
