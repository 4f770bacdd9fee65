"""Commands that start SGLang servers without a GPU: replay, calibrate, cluster and demo."""
