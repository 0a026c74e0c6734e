"""The registry of checkpoints, as package data: importable as `editlab_checkpoints` once installed."""
