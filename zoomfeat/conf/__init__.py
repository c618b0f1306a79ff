"""The configuration tree: typed keys with their explanations, and the packaged YAML defaults."""
