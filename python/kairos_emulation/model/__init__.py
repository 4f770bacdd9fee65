"""Model classes without arithmetic. SGLang imports them through SGLANG_EXTERNAL_MODEL_PACKAGE."""
