"""The tabs of the Edit page, one file each; `draw(lab)` draws one."""
