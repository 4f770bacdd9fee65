"""Entry points of the two SGLang platforms, `kairos-cpu` and `kairos-emulated`.

SGLang calls every installed platform's entry point when SGLANG_PLATFORM is unset, production
included, and takes None for "not here". So nothing heavy is imported before the name is checked.
"""

import gc
import os


def activate_cpu() -> str | None:
    """Real math on the CPU. Returns the platform class's path, None unless selected by name."""
    if os.environ.get("SGLANG_PLATFORM") != "kairos-cpu":
        return None
    from kairos_emulation import hooks, shims

    gc.disable()  # until the imports are over: see hooks.install
    shims.apply()
    hooks.install(hooks.COMMON)
    return "kairos_emulation.srt_platform.CpuPlatform"


def activate_emulated() -> str | None:
    """Emulated accelerator. Returns the platform class's path, None unless selected by name.

    Raises:
        SystemExit: the latency profile cannot be used. Not an ordinary exception: SGLang would
            log that as a traceback.
    """
    if os.environ.get("SGLANG_PLATFORM") != "kairos-emulated":
        return None
    from kairos.errors import InputError
    from kairos_emulation import device, hooks, shims, streams

    try:
        device.configure()
    except InputError as error:
        raise SystemExit(f"kairos-emulated: KAIROS_EMULATION_PROFILE: {error}") from None
    gc.disable()  # until the imports are over: see hooks.install
    streams.replace_torch_streams()
    shims.apply()
    hooks.install(hooks.COMMON + hooks.EMULATED)
    return "kairos_emulation.srt_platform.EmulatedPlatform"
