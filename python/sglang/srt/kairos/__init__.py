"""What Kairos runs inside SGLang's processes.

`config` and `http` live in the process that serves HTTP, `request_slo`, `state` and
`prefill_scheduler` in the scheduler. The hooks that call them are in `kairos_patches`.
"""
