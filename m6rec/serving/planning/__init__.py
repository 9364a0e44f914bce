"""How a run is to be served: from a request log through simulation to a plan file."""
