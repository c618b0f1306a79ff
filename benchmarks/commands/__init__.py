"""The commands of this package: one module each, with ``run(config) -> int``."""
