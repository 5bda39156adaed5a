"""Networks, each defined once: torch trains them on the head, NumPy acts with them at the edge."""
