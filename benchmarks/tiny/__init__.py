"""How `zoomldm-tiny` is made and judged: its cohort, and the measurements of its model card."""
