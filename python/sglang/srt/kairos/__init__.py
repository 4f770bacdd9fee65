"""The part of Kairos that runs inside SGLang's processes.

`config` and `http` run in the process that serves HTTP, `request_slo` there and in the scheduler,
everything else in the scheduler, where `state` owns it. The hooks in `kairos_patches` call these
modules, and `upstream` declares the members of SGLang's classes that the modules use.
"""
