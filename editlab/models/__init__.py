"""Where models come from: the registry of named checkpoints, fetching them, and loading any folder."""
