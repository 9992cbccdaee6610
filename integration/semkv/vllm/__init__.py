"""semkv in vLLM: long decode rows attend to what their query asks for.

Installed, this changes nothing. Set SEMKV_VLLM (options.py) and vLLM's CPU attention is replaced by
a subclass that decodes long rows sparsely; docs/vllm.md has the options and what falls back.
"""
import os

SWITCH = "SEMKV_VLLM"  # the environment variable; options.py reads it
TESTED = ("0.32.0",)

_off = None  # why this process stays with stock vLLM although the switch is on


def is_switched_on():
    return bool(os.environ.get(SWITCH))


def register():
    """Entry point of vllm.general_plugins; called in every process, maybe more than once."""
    global _off
    if not is_switched_on() or _off is not None:
        return
    import vllm
    from vllm.logger import init_logger
    from vllm.platforms import current_platform

    logger = init_logger("vllm.semkv")
    if vllm.__version__.split("+")[0] not in TESTED:
        logger.warning_once("semkv: tested with vLLM %s, this is %s; it is used if its attention "
                            "classes look the same", ", ".join(TESTED), vllm.__version__)
    if not current_platform.is_cpu():
        # gpu_backend.py is what a GPU will get, once the kernels have run on one.
        _off = ("semkv has not been run on a GPU yet, so only vLLM's CPU backend is served; this is "
                f"{current_platform.device_name}")
    else:
        try:
            _override()
        except (ImportError, AttributeError, TypeError) as error:
            _off = str(error)
    if _off is not None:
        logger.warning_once("semkv: off, nothing is changed: %s", _off)


def _override():
    """Raises ImportError, AttributeError or TypeError where this vLLM (or libsemkv) does not have
    what cpu_backend builds on; nothing is changed then."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from semkv.vllm import seams

    seams.check()
    register_backend(AttentionBackendEnum.CPU_ATTN, "semkv.vllm.cpu_backend.SemkvCpuBackend")
    seams.watch_ids(GPUModelRunner)
    seams.watch_layers(GPUModelRunner)


def explain():
    """What semkv does in this process and why, as text. With several processes ask each worker:
    llm.collective_rpc(lambda worker: semkv.vllm.explain())."""
    if _off is not None:
        return f"semkv: off, {_off}\n"
    if not is_switched_on():
        return f"semkv: not switched on ({SWITCH})\n"
    from semkv.vllm import group
    return group.explain()
