"""The disaggregation router: an urgency queue in front of prefill/decode pairs."""
