"""Networks, plans and what trains in them."""
