"""The page of a leaderboard."""

from benchmarks.site.page import Site, make_site

__all__ = ["Site", "make_site"]
