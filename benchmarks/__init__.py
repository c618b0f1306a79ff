"""Benchmarks: so far, what the network costs (:mod:`benchmarks.speed.network`)."""
