"""Nothing here starts a browser or fetches a model."""
