"""Facts and prose, and the files that hold them."""
