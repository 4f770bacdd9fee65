"""Model classes without math, for the emulated accelerator."""
