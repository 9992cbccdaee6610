"""What of vLLM's inside cpu_backend relies on, looked at before anything is replaced."""
import dataclasses
import inspect


def _needs(function, names):
    found = inspect.signature(function).parameters
    missing = [name for name in names if name not in found]
    if missing:
        raise AttributeError(f"{function.__qualname__} has no parameter {', '.join(missing)}")


def _needs_fields(dataclass, names):
    missing = names - {field.name for field in dataclasses.fields(dataclass)}
    if missing:
        raise AttributeError(f"{dataclass.__name__} has no {', '.join(sorted(missing))}")


def check():
    """Raises ImportError or AttributeError that names what is missing."""
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.attention.backends.cpu_attn import (
        CPUAttentionBackend,
        CPUAttentionBackendImpl,
        CPUAttentionMetadata,
        CPUAttentionMetadataBuilder,
    )

    import semkv.vllm.cpu_backend  # noqa: F401  libsemkv and every name that it imports are there

    _needs(CPUAttentionBackendImpl.forward,
           ["layer", "query", "key", "value", "kv_cache", "attn_metadata", "output",
            "output_scale", "output_block_scale"])
    _needs(CPUAttentionMetadataBuilder.build,
           ["common_prefix_len", "common_attn_metadata", "fast_build"])
    if CPUAttentionBackend.forward_includes_kv_cache_update:
        raise AttributeError("CPUAttentionBackend writes keys and values in forward")
    _needs_fields(CPUAttentionMetadata, {"slot_mapping"})
    _needs_fields(CommonAttentionMetadata, {
        "query_start_loc", "query_start_loc_cpu", "seq_lens", "num_reqs", "max_query_len",
        "num_actual_tokens", "max_seq_len", "block_table_tensor", "is_prefilling"})


def watch_layers(runner):
    """Tells the groups when the layers and their KV cache are there."""
    from semkv.vllm import group

    stock = runner.initialize_kv_cache
    if getattr(stock, "is_semkv", False):
        return

    def initialize_kv_cache(self, *args, **kwargs):
        stock(self, *args, **kwargs)
        group.note_layers(self.vllm_config)

    initialize_kv_cache.is_semkv = True
    runner.initialize_kv_cache = initialize_kv_cache


def watch_ids(runner):
    """Tells the groups the token ids of every forward pass.

    `runner`._model_forward, which vLLM keeps apart so that it can be overridden, is outside of any
    compiled graph; a hook on the embedding would be inside. A KV connector's scheduler half knows
    ids too, but not those that asynchronous scheduling has yet to sample, and needs another flag.
    """
    from semkv.vllm import group

    stock = runner._model_forward
    if getattr(stock, "is_semkv", False):
        return

    def _model_forward(self, input_ids=None, *args, **kwargs):
        group.note_step_ids(input_ids)
        try:
            return stock(self, input_ids, *args, **kwargs)
        finally:
            group.note_step_ids(None)

    _model_forward.is_semkv = True
    runner._model_forward = _model_forward
