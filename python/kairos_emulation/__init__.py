"""SGLang on plain CPU and on an emulated accelerator. Development, CI and the demo only."""
