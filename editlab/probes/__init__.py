"""Probes: one a file. They read the model and what changes in it bring about; they edit nothing."""
