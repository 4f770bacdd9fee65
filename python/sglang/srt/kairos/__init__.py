"""What Kairos runs inside SGLang."""
