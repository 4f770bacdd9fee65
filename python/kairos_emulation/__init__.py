"""SGLang on plain CPU and on an emulated accelerator, for development, CI and the demo."""
