"""semkv in one model of transformers: options, hooks, which layers and forwards are served."""
from __future__ import annotations

import collections
import inspect
import warnings
import weakref
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import semkv.cache
from semkv import _context
from semkv._abi import SemkvError
from semkv._policy import changed, fields_of, make_policy
from semkv._vocabulary import vocabulary_bytes
from semkv.hf.rows import Layer, Rows, attention_over, handed, stock_attention

TESTED = ("5.19.0",)
# Of semkv_stats, what holds now and is no count of what happened.
_GAUGES = ("pages_free", "pages_used", "pages_cached")

handles: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> Enabled


class Enabled:
    """semkv in one model; made by enable()."""

    def __init__(self, model, policy, tokenizer, max_tokens, fields):
        if model in handles:
            raise ValueError(f"semkv is enabled in this {type(model).__name__} already")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}, must be at least 1")
        if transformers.__version__ not in TESTED:
            warnings.warn(f"semkv: tested with transformers {', '.join(TESTED)}, this is "
                          f"{transformers.__version__}", stacklevel=3)
        if tokenizer is None and policy == "hybrid":
            warnings.warn("semkv: no tokenizer, so no sentences: policy cluster instead of hybrid",
                          stacklevel=3)
            policy = "cluster"
        self._config = model.config
        self._max_tokens = max_tokens
        self._places, self._left = _survey(model)
        self._forwards = collections.Counter()
        self._pools = weakref.WeakSet()  # semkv.Cache of each cache that was moved
        self._ended: dict[str, Any] = {}  # sums over those that are gone
        attention = _attention_modules(model)[next(iter(self._places))]
        heads = self._config.num_attention_heads
        self.options = dict(
            num_layers=len(self._places), num_heads=heads,
            num_kv_heads=getattr(self._config, "num_key_value_heads", None) or heads,
            head_dim=attention.head_dim, num_threads=torch.get_num_threads(),
            vocabulary=None if tokenizer is None else vocabulary_bytes(tokenizer),
            prefix_sharing=False, policy=policy, **fields)
        self.policy = fields_of(changed(make_policy(policy), fields))
        self._check_options(model.dtype)
        self._install(model)

    def _check_options(self, dtype: torch.dtype) -> None:
        try:
            with semkv.cache.Cache(max_tokens=16, dtype=dtype, **self.options) as cache:
                cache.sequence()
                self._note_end(cache._handles)
        except SemkvError as error:
            raise ValueError(f"semkv: {error}") from error

    def _install(self, model: transformers.PreTrainedModel) -> None:
        self._stock = self._config._attn_implementation
        self._name = f"semkv_{self._stock}"
        AttentionInterface.register(self._name, attention_over(self._stock))
        AttentionMaskInterface.register(self._name, ALL_MASK_ATTENTION_FUNCTIONS[self._stock])
        model.set_attn_implementation(self._name)
        self._model = weakref.ref(model)
        decoder = model.base_model  # model.generate() and model.model(...) both go through it
        self._names = list(inspect.signature(decoder.forward).parameters)
        self._hook = decoder.register_forward_pre_hook(self._before, with_kwargs=True)
        handles[model] = self

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.disable()

    @property
    def is_enabled(self) -> bool:
        return self._hook is not None

    def disable(self) -> None:
        """Gives the model back its own attention. May be repeated."""
        if not self.is_enabled:
            return
        self._hook.remove()
        self._hook = None
        model = self._model()
        if model is not None:
            model.set_attn_implementation(self._stock)
            handles.pop(model, None)

    @property
    def threshold(self) -> int:
        """Steps whose longest row has at most so many tokens are transformers' own."""
        policy = self.policy
        return 0 if policy["force_sparse"] else max(policy["budget"], policy["min_context"])

    def stats(self) -> dict[str, Any]:
        """The library's counters (semkv.Cache.stats) summed over all caches since enable(), pages
        only of those that live; "caches": how many were moved and live; "forwards": a dict by what
        became of them."""
        total = dict(self._ended)
        for pool in list(self._pools):
            total = _sum(total, pool.stats())
        return {**total, "caches": len(self._pools), "forwards": dict(self._forwards)}

    def explain(self) -> str:
        policy = self.policy
        lines = [f"semkv in transformers: policy {policy['policy']}, budget {policy['budget']}, "
                 f"decode steps above {self.threshold} tokens, {len(self._places)} layers"
                 + ("" if self.is_enabled else "; disabled")]
        lines += [f"layer {i}: left to transformers, {why}" for i, why in self._left.items()]
        lines.append("forwards: " + (", ".join(
            f"{reason} {count}" for reason, count in sorted(self._forwards.items())) or "none"))
        lines += [pool.explain() for pool in list(self._pools)]
        return "\n".join(lines) + "\n"

    def make_pool(self, num_rows: int, dtype: torch.dtype) -> semkv.cache.Cache:
        """A semkv.Cache for a cache of `num_rows` rows; counted while it lives."""
        # 16: every row may have a last page that is not full.
        tokens = self._max_tokens or num_rows * (self._config.max_position_embeddings + 16)
        pool = semkv.cache.Cache(max_tokens=tokens, dtype=dtype, **self.options,
                                 max_sequences=max(64, 4 * num_rows))
        self._pools.add(pool)
        # Runs before the pool's own finalizer: the latest comes first.
        weakref.finalize(pool, self._note_end, pool._handles).atexit = False
        return pool

    def _note_end(self, handles: Any) -> None:
        ended = _context.stats(handles.context)
        self._ended = _sum(self._ended, {**ended, **dict.fromkeys(_GAUGES, 0)})

    def count(self, reason: str) -> None:
        self._forwards[reason] += 1

    def _before(self, decoder, args, kwargs):
        """Runs before every forward of the decoder, with its arguments."""
        handed.entry = None
        if self._config._attn_implementation != self._name:
            raise RuntimeError(f"the attention implementation was set to "
                               f"{self._config._attn_implementation!r} while semkv is enabled: "
                               "call semkv.hf.disable first")
        given = {**dict(zip(self._names, args)), **kwargs}
        cache = given.get("past_key_values")
        if cache is None:
            wanted = given.get("use_cache")
            if decoder.training or not (getattr(self._config, "use_cache", True) if wanted is None
                                    else wanted):
                self.count("no cache")
                return None
            cache = given["past_key_values"] = DynamicCache(config=self._config)
        rows = self._rows_of(cache)
        if rows is None:
            self.count(f"a {type(cache).__name__} that was not empty, or of another kind")
            return None
        rows.begin(cache, given.get("input_ids"), given.get("inputs_embeds"),
                   given.get("attention_mask"), self._refusal(decoder, given))
        return (), given

    def _refusal(self, decoder: torch.nn.Module, given: dict[str, Any]) -> str | None:
        """Why this forward must be transformers' own, whatever its length."""
        if decoder.training:
            return "training mode"
        if torch.is_grad_enabled() and any(p.requires_grad for p in decoder.parameters()):
            return "gradients are wanted (use torch.no_grad)"
        if given.get("output_attentions") or self._config.output_attentions:
            return "output_attentions"
        mask = given.get("attention_mask")
        if mask is not None and not (isinstance(mask, torch.Tensor) and mask.ndim == 2):
            return "an attention_mask that is not [rows, tokens]"
        return None

    def _rows_of(self, cache: Cache) -> Rows | None:
        """The rows of a cache, which is made semkv's if it is a DynamicCache and still empty."""
        layers = getattr(cache, "layers", [])
        for layer in layers:
            if isinstance(layer, Layer):
                if layer.rows.enabled is not self:
                    raise RuntimeError("this cache was filled by another model, or before semkv "
                                       "was disabled and enabled again")
                return layer.rows
        if type(cache) is not DynamicCache or cache.offloading or any(
                getattr(layer, "is_initialized", True) for layer in layers):
            return None
        rows = Rows(self)
        stock = layers or DynamicCache(config=self._config).layers
        cache.layers = [Layer(rows, self._places[i]) if i in self._places else layer
                        for i, layer in enumerate(stock)]
        cache.layer_class_to_replicate = None
        return rows


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Numbers, and dicts of them, by name."""
    result = dict(one)
    for name, value in other.items():
        result[name] = _sum(one.get(name, {}), value) if isinstance(value, dict) \
            else one.get(name, 0) + value
    return result


def _attention_modules(model: torch.nn.Module) -> dict[int, torch.nn.Module]:
    """By layer_idx."""
    return {module.layer_idx: module for module in model.modules()
            if hasattr(module, "layer_idx") and hasattr(module, "is_causal")}


def _check_model(model: transformers.PreTrainedModel) -> None:
    config, kind = model.config, type(model).__name__
    devices = {str(p.device) for p in model.parameters()} - {"cpu"}
    stock = config._attn_implementation
    wrong = None
    if config.is_encoder_decoder:
        wrong = "is an encoder-decoder"
    elif config.get_text_config(decoder=True) is not config:
        wrong = "is more than a decoder of text"
    elif devices:
        wrong = f"is on device {', '.join(sorted(devices))}, must be on cpu"
    elif not model._can_set_attn_implementation():
        wrong = "does not take its attention from transformers' AttentionInterface"
    elif stock not in ("sdpa", "eager"):
        wrong = f"has attn_implementation {stock!r}, must be 'sdpa' or 'eager'"
    elif getattr(config, "num_kv_shared_layers", None):
        wrong = f"has {config.num_kv_shared_layers} layers that share keys, must have 0"
    if wrong is not None:
        raise ValueError(f"semkv cannot serve this {kind}: it {wrong}")


def _survey(model: transformers.PreTrainedModel) -> tuple[dict[int, int], dict[int, str]]:
    """The layers that semkv serves, {layer: index among them}, and why it leaves the others."""
    _check_model(model)
    modules, places, left = _attention_modules(model), {}, {}
    for layer, cached in enumerate(DynamicCache(config=model.config).layers):
        module = modules.get(layer)
        if type(cached) is not DynamicLayer:
            left[layer] = f"a cache layer of kind {type(cached).__name__}"
        elif module is None or stock_attention(model.config._attn_implementation, module) is None:
            left[layer] = "no attention that semkv knows"
        elif not module.is_causal:
            left[layer] = "attention that is not causal"
        elif hasattr(module, "kv_lora_rank"):
            left[layer] = "latent keys (MLA)"
        elif hasattr(module, "sinks"):
            left[layer] = "learned sinks"
        else:
            places[layer] = len(places)
    if not places:
        raise ValueError(f"semkv cannot serve any layer of this {type(model).__name__}: "
                         + ", ".join(sorted(set(left.values()))))
    return places, left
