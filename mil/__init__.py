"""Multiple-instance learning on bags: so far, bags as single vectors."""
