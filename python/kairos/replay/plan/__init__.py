"""The plan of a replay: requests with times, lengths, SLOs and prompts, and the arms."""
