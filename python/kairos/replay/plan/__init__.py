"""What a replay sends: requests with their times, lengths, SLOs and prompts, and the arms."""
