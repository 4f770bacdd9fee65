"""What Kairos runs inside SGLang's processes.

`config` and `http` live in the process that serves HTTP, `state`, `prefill_planner` and
`prefill_scheduler` in the scheduler, `request_slo` in both. The hooks that call them are in
`kairos_patches`.
"""
