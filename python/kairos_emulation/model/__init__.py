"""Model classes without math. SGLang imports them through SGLANG_EXTERNAL_MODEL_PACKAGE."""
