"""The tables of MIL heads: classic sets of bags, and small regions of real tissue."""
