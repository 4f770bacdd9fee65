"""Client side: listening, TLS, keys, limits, endpoints, errors."""
