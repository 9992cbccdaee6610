"""semkv in Hugging Face transformers: long decode steps attend to what their queries ask for.

    import semkv.hf

    semkv.hf.enable(model, budget=2048, tokenizer=tokenizer)
    model.generate(**inputs)

Until a step is worth it, keys and values are transformers' own tensors and its own attention reads
them: prompts and short contexts are stock, bit for bit. The first decode step above max(budget,
min_context) tokens moves them, layer by layer, into semkv sequences, one per row and without its
padding; there is one copy at any time. docs/transformers.md has what is served and what falls back.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semkv.hf.enabled import Enabled, handles

if TYPE_CHECKING:
    import transformers


def enable(model: transformers.PreTrainedModel, policy: str = "hybrid", *, tokenizer: Any = None,
           max_tokens: int | None = None, **fields: Any) -> Enabled:
    """Makes `model` decode long rows sparsely, in generate() and in forwards with a cache.

    model: a decoder of text on the CPU, its attention "sdpa" or "eager", in float32, float16 or
        bfloat16. It is changed in place until disable().
    policy, fields: a policy's name and fields of struct semkv_policy (semkv.POLICY_FIELDS), such as
        budget=2048, min_context=4096, force_sparse=True.
    tokenizer: tells where sentences end. Without one "hybrid" becomes "cluster", with a warning.
    max_tokens: most tokens that one cache (one generate()) keeps, over all its rows, padding not
        counted; default config.max_position_embeddings for each row. Address space for them is
        reserved at once, memory as they come.

    Returns the handle, a context manager that disables at its end.
    Errors: ValueError that says what of the model or the options does not fit, TypeError for an
    unknown field; nothing is changed then.
    """
    return Enabled(model, policy, tokenizer, max_tokens, fields)


def disable(model: transformers.PreTrainedModel) -> None:
    """Undoes enable(). Caches that were moved into semkv raise RuntimeError from then on."""
    _handle(model).disable()


def explain(model: transformers.PreTrainedModel) -> str:
    """What semkv does in `model` and why: policy, layers left out, forwards by reason, caches."""
    return _handle(model).explain()


def stats(model: transformers.PreTrainedModel) -> dict[str, Any]:
    """Numbers since enable(); see Enabled.stats."""
    return _handle(model).stats()


def _handle(model: transformers.PreTrainedModel) -> Enabled:
    if model not in handles:
        raise ValueError(f"semkv is not enabled in this {type(model).__name__}")
    return handles[model]
