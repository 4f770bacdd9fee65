"""Request traces, their scaling to a load, and the SLOs of their requests."""
