"""Start, watch and stop a prefill/decode cluster of SGLang servers on this machine."""
