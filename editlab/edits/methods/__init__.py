"""Editing methods, one file each. A module offers `Config` and `compute(lm, facts, config, on_step) -> Edit`."""
