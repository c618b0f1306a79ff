"""Speed, as ratios to an alternative measured in the same run."""
