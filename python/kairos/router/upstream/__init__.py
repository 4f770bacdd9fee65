"""Worker side: HTTP client, attempts with their two legs, aborts, streams."""
