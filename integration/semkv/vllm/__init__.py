"""semkv in vLLM: long decode rows attend to what their query asks for.

Installed, this changes nothing. Set SEMKV_VLLM (options.py) and vLLM's CPU attention is replaced by
a subclass that decodes long rows sparsely; docs/vllm.md has the options and what falls back.
"""
from semkv.vllm.options import is_switched_on


def register():
    """Entry point of vllm.general_plugins; called in every process, maybe more than once."""
    if not is_switched_on():
        return
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if not current_platform.is_cpu():
        from vllm.logger import init_logger
        init_logger("vllm.semkv").warning(
            "semkv: only vLLM's CPU backend is supported, this is %s: nothing is changed",
            current_platform.device_name)
        return
    register_backend(AttentionBackendEnum.CPU_ATTN, "semkv.vllm.cpu_backend.SemkvCpuBackend")
    _watch_ids()


def _watch_ids():
    """Tells the groups the token ids of every forward pass.

    GPUModelRunner._model_forward, which the CPU runner inherits, exists to be overridden; unlike a
    hook on the embedding it is never part of a compiled graph.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from semkv.vllm import group

    stock = getattr(GPUModelRunner, "_model_forward", None)
    if stock is None or getattr(stock, "is_semkv", False):
        return

    def _model_forward(self, input_ids=None, *args, **kwargs):
        group.note_step_ids(input_ids)
        return stock(self, input_ids, *args, **kwargs)

    _model_forward.is_semkv = True
    GPUModelRunner._model_forward = _model_forward


def explain():
    """What semkv does in this process and why, as text. With several processes ask each worker:
    llm.collective_rpc(lambda worker: semkv.vllm.explain())."""
    from semkv.vllm import group
    return group.explain()
