"""Entry points of the two SGLang platforms, `kairos-cpu` and `kairos-emulated`.

SGLang calls the entry point of every installed platform when SGLANG_PLATFORM is unset, in
production too, and takes None for "not here". So the name is checked before anything heavy is
imported.
"""

import gc
import os


def activate_cpu() -> str | None:
    """Activate the platform that computes on the CPU.

    Returns:
        Path of the platform class; None unless SGLANG_PLATFORM names the platform.
    """
    if os.environ.get("SGLANG_PLATFORM") != "kairos-cpu":
        return None
    from kairos_emulation import hooks, shims

    gc.disable()  # until the imports are over, see hooks.install
    shims.apply()
    hooks.install(hooks.COMMON)
    return "kairos_emulation.srt_platform.CpuPlatform"


def activate_emulated() -> str | None:
    """Activate the platform with an emulated accelerator.

    Returns:
        Path of the platform class; None unless SGLANG_PLATFORM names the platform.

    Raises:
        SystemExit: the latency profile cannot be used. SGLang would log an ordinary exception as
            a traceback.
    """
    if os.environ.get("SGLANG_PLATFORM") != "kairos-emulated":
        return None
    from kairos.errors import InputError
    from kairos_emulation import device, hooks, shims, streams

    try:
        device.configure()
    except InputError as error:
        raise SystemExit(f"kairos-emulated: KAIROS_EMULATION_PROFILE: {error}") from None
    gc.disable()  # until the imports are over, see hooks.install
    streams.replace_torch_streams()
    shims.apply()
    hooks.install(hooks.COMMON + hooks.EMULATED)
    return "kairos_emulation.srt_platform.EmulatedPlatform"
