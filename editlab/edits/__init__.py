"""Locate-and-edit engines: the shared machinery here, one file per method in `methods/`."""
