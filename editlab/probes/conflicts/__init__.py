"""Knowledge conflicts: what a model answers when its context contradicts what it knows, and which heads decide."""
