"""One module a command of the generative side; each has ``run(config) -> exit code``."""
