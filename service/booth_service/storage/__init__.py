"""The object store: every key, and the one client."""
