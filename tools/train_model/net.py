"""The model: a Llama decoder in plain torch, parameters named as in transformers' LlamaForCausalLM.

Two ways through it: `LanguageModel.forward` is the training step (loss at chosen positions), and
`Decoder.forward` with a cache and a mask is what evaluation uses.
"""
import dataclasses

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Config:
    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 640
    rope_theta: float = 5e5
    norm_eps: float = 1e-5
    max_positions: int = 32768

    @staticmethod
    def from_hugging_face(config):
        """From the fields of a config.json (a dict)."""
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        return Config(config["vocab_size"], config["hidden_size"], config["num_hidden_layers"],
                      config["num_attention_heads"], config["num_key_value_heads"],
                      config["head_dim"], config["intermediate_size"], theta,
                      config["rms_norm_eps"], config["max_position_embeddings"])

    def to_hugging_face(self):
        """The fields of a config.json."""
        return dict(
            architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=self.vocabulary,
            hidden_size=self.hidden, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim, intermediate_size=self.intermediate,
            rms_norm_eps=self.norm_eps, rope_theta=self.rope_theta,
            rope_parameters=dict(rope_type="default", rope_theta=self.rope_theta),
            hidden_act="silu", max_position_embeddings=self.max_positions,
            tie_word_embeddings=True, attention_bias=False, mlp_bias=False, bos_token_id=0,
            eos_token_id=1, torch_dtype="bfloat16", use_cache=True)


class RMSNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden))
        self.eps = config.norm_eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotate(x, cos, sin):
    """Rotary embedding, first half paired with second half. x: [batch, tokens, heads, head_dim]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def causal_attention(q, k, v, block=512):
    """Causal attention with grouped heads. q: [batch, heads, tokens, head_dim].

    With gradients, long rows go by query blocks of plain matrix products: torch's own backward is
    slow on CPU beyond a few hundred tokens.
    """
    batch, heads, tokens, dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    if tokens <= block or not torch.is_grad_enabled():
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    future = torch.full((block, block), -1e4, dtype=q.dtype).triu(1)
    outputs = []
    for begin in range(0, tokens, block):
        end = begin + block
        rows = q[:, :, begin:end].reshape(batch, kv_heads, group * block, dim) * dim ** -.5
        scores = (rows @ k[:, :, :end].transpose(-1, -2)).view(batch, kv_heads, group, block, end)
        weights = (scores + F.pad(future, (begin, 0))).softmax(-1)
        out = weights.view(batch, kv_heads, group * block, end) @ v[:, :, :end]
        outputs.append(out.view(batch, heads, block, dim))
    return torch.cat(outputs, 2)


def masked_attention(q, k, v, allowed):
    """Attention of a few queries over cached keys; allowed: [queries, keys], true where seen."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, width, bias=False)
        self.k_proj = nn.Linear(config.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden, bias=False)

    def forward(self, x, cos, sin, past=None, allowed=None):
        """-> (output, (keys, values)); past: keys and values of earlier tokens."""
        config = self.config
        batch, tokens, _ = x.shape
        shape = (batch, tokens, -1, config.head_dim)
        q = rotate(self.q_proj(x).view(shape), cos, sin).transpose(1, 2)
        k = rotate(self.k_proj(x).view(shape), cos, sin).transpose(1, 2)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        if past is None:
            out = causal_attention(q, k, v)
        else:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            out = masked_attention(q, k, v, allowed)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1)), (k, v)


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config)
        self.post_attention_layernorm = RMSNorm(config)

    def forward(self, x, cos, sin, past=None, allowed=None):
        attended, present = self.self_attn(self.input_layernorm(x), cos, sin, past, allowed)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config)
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self.register_buffer("frequencies", config.rope_theta ** -exponents, persistent=False)

    def forward(self, ids, positions, past=None, allowed=None):
        """-> (hidden states [batch, tokens, hidden], cache: (keys, values) of each layer)."""
        x = self.embed_tokens(ids)
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        angles = positions[..., None].float() * self.frequencies
        cos, sin = angles.cos()[:, :, None].to(x.dtype), angles.sin()[:, :, None].to(x.dtype)
        presents = []
        for index, layer in enumerate(self.layers):
            x, present = layer(x, cos, sin, past[index] if past else None, allowed)
            presents.append(present)
        return self.norm(x), presents


class LanguageModel(nn.Module):
    """Decoder with tied output embedding."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight).float()

    def forward(self, ids, positions, chosen, targets, weights):
        """Weighted cross entropy at the chosen positions of the flattened batch."""
        hidden, _ = self.model(ids, positions)
        logits = self.logits(hidden.reshape(-1, self.config.hidden)[chosen])
        losses = F.cross_entropy(logits, targets, reduction="none")
        return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def initialise(model):
    """Weights to start from. Call after torch.manual_seed.

    Unit embeddings with a small final norm (the output is tied). Channel 0 of every embedding is a
    constant, from which the query heads of layer 0 start as heads that look 1, 2, 3, 4 tokens back:
    the copying circuits of the layers above need exactly that, and hardly find it by themselves.
    """
    config, decoder = model.config, model.model
    constant, strength, channels = 6.0, 1.2, 10
    decoder.embed_tokens.weight.normal_(0, 1)
    decoder.embed_tokens.weight[:, 0] = constant
    decoder.norm.weight.fill_(.05)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.mul_(.1)
    attention, half = decoder.layers[0].self_attn, config.head_dim // 2
    for head in range(config.kv_heads):
        first = head * config.head_dim
        attention.k_proj.weight[first:first + channels, 0] = strength
    for head in range(config.heads):
        first = head * config.head_dim
        angle = decoder.frequencies[:channels] * (head + 1)
        attention.q_proj.weight[first:first + channels, 0] = strength * angle.cos()
        second = first + half
        attention.q_proj.weight[second:second + channels, 0] = -strength * angle.sin()
