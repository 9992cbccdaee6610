#!/usr/bin/env python3
"""Writes what the C++ reference engine is tested against, computed by transformers in float32.

  tests/reference/fixtures/tiny_logits.json   prompts of models/semkv-tiny, logits, continuations
  tests/reference/fixtures/random24/          a 24-layer Llama with random weights in three shards,
                                              llama3 rope scaling, untied output; its logits.json
  tests/reference/fixtures/tokenizer.json     strings, their ids, and what the ids decode to

Needs torch, transformers, tokenizers, safetensors. The files are committed; run this only to change
them. Versions that wrote them are noted inside.
"""
import json
import os
import random
import sys

import tokenizers
import torch
import transformers
from safetensors.torch import save_file

TOOLS = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(TOOLS, "train_model"))

import documents  # noqa: E402

MODEL = os.path.join(TOOLS, "..", "models", "semkv-tiny")
FIXTURES = os.path.join(TOOLS, "..", "tests", "reference", "fixtures")
VERSIONS = dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__,
                tokenizers=tokenizers.__version__)

RANDOM24_SHARDS = 3
RANDOM24_CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=512, hidden_size=64,
    num_hidden_layers=24, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
    intermediate_size=160, rms_norm_eps=1e-6, rope_theta=500000.0,
    rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=1024),
    hidden_act="silu", max_position_embeddings=8192, tie_word_embeddings=False,
    attention_bias=False, mlp_bias=False, bos_token_id=0, eos_token_id=1, torch_dtype="bfloat16",
    use_cache=True)


def write_json(path, fields, indent=1):
    with open(path, "w") as file:
        json.dump(fields, file, indent=indent)
        file.write("\n")


@torch.no_grad()
def logits_case(model, name, ids, new_tokens):
    """Logits after the last id, and the greedy continuation with its smallest margin.

    margin: the least difference between the best and the second logit along the continuation; a
    computation whose error is below half of it writes the same tokens.
    """
    rng = random.Random(name)
    last = model(torch.tensor([ids])).logits[0, -1]
    top = last.topk(8)
    some = sorted(rng.sample(range(len(last)), 64))
    row, margin = list(ids), float("inf")
    for _ in range(new_tokens):
        best = model(torch.tensor([row])).logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        row.append(best.indices[0].item())
    rounded = lambda values: [round(v, 5) for v in values.tolist()]
    return dict(
        name=name, ids=ids,
        logits=dict(top=dict(indices=top.indices.tolist(), values=rounded(top.values)),
                    some=dict(indices=some, values=rounded(last[some])),
                    sum=round(last.double().sum().item(), 4),
                    l2=round(last.double().norm().item(), 4)),
        greedy=dict(ids=row[len(ids):], margin=round(margin, 5)))


def tiny_logits():
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(MODEL, "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text).ids
    fact = documents.simple_fact("The access code of the Marlow archive is",
                                 "What is the access code of the Marlow archive?", " 7413")
    sentence = documents.sentence_text(fact.sentences[0])
    prompts = [("one token", "", 4), ("a fact alone", sentence + fact.prompt(True), 8),
               ("documentation", "Usage: print the contents of each file to the standard", 12)]
    for tokens in (200, 600):
        count = lambda text: len(encode(text))
        text, asked = documents.evaluation_document("facts4", tokens, "fixture", count)
        prompts += [(f"facts4 of {tokens} tokens, restated", text + asked[0].fact.prompt(True), 8),
                    (f"facts4 of {tokens} tokens, bare", text + asked[3].fact.prompt(False), 8)]
    cases = []
    for name, text, new_tokens in prompts:
        case = logits_case(model, name, [0] + encode(text), new_tokens)
        case["continuation"] = tokenizer.decode(case["greedy"]["ids"], skip_special_tokens=False)
        cases.append(case)
        print(name, len(case["ids"]), repr(case["continuation"]), case["greedy"]["margin"])
    write_json(os.path.join(FIXTURES, "tiny_logits.json"), dict(
        model="models/semkv-tiny", computed="float32 from the bfloat16 weights", versions=VERSIONS,
        cases=cases), indent=None)


def random24_weights():
    """Normal weights of standard deviation 1/sqrt(inputs); queries and keys larger, so that
    attention is not flat; what is added to the residual smaller, so that 24 layers stay tame."""
    config, numbers = RANDOM24_CONFIG, torch.Generator().manual_seed(24)
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    width = config["num_attention_heads"] * config["head_dim"]
    kv_width = config["num_key_value_heads"] * config["head_dim"]
    normal = lambda rows, columns, gain=1.: (
        torch.randn(rows, columns, generator=numbers) * gain * columns ** -.5).bfloat16()
    norm = lambda: (1 + .1 * torch.randn(hidden, generator=numbers)).bfloat16()
    weights = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden, hidden ** .5)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights.update({
            prefix + "input_layernorm.weight": norm(),
            prefix + "self_attn.q_proj.weight": normal(width, hidden, 1.6),
            prefix + "self_attn.k_proj.weight": normal(kv_width, hidden, 1.6),
            prefix + "self_attn.v_proj.weight": normal(kv_width, hidden),
            prefix + "self_attn.o_proj.weight": normal(hidden, width, .7),
            prefix + "post_attention_layernorm.weight": norm(),
            prefix + "mlp.gate_proj.weight": normal(intermediate, hidden),
            prefix + "mlp.up_proj.weight": normal(intermediate, hidden),
            prefix + "mlp.down_proj.weight": normal(hidden, intermediate, .7)})
    weights["model.norm.weight"] = norm()
    weights["lm_head.weight"] = normal(config["vocab_size"], hidden, 2.)
    return weights


def write_random24(folder):
    """config.json, shards of about equal size, and the index that says which holds what."""
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, "config.json"), RANDOM24_CONFIG)
    weights = random24_weights()
    total = sum(w.numel() * 2 for w in weights.values())
    shards, done = [{} for _ in range(RANDOM24_SHARDS)], 0
    for name, weight in weights.items():
        shards[done * RANDOM24_SHARDS // total][name] = weight
        done += weight.numel() * 2
    places = {}
    for index, shard in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{RANDOM24_SHARDS:05d}.safetensors"
        save_file(shard, os.path.join(folder, file), metadata={"format": "pt"})
        os.chmod(os.path.join(folder, file), 0o644)
        places.update({name: file for name in shard})
    write_json(os.path.join(folder, "model.safetensors.index.json"),
               dict(metadata=dict(total_size=total), weight_map=dict(sorted(places.items()))))


def random24():
    folder = os.path.join(FIXTURES, "random24")
    write_random24(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cases = []
    for length in (2, 7, 129, 600):
        rng = random.Random(f"random24 {length}")
        ids = [0] + [rng.randrange(2, RANDOM24_CONFIG["vocab_size"]) for _ in range(length - 1)]
        cases.append(logits_case(model, f"{length} tokens", ids, 8))
        print("random24", length, cases[-1]["greedy"], cases[-1]["logits"]["l2"])
    frequencies = model.model.rotary_emb.inv_freq
    write_json(os.path.join(folder, "logits.json"), dict(
        model="random24", computed="float32 from the bfloat16 weights", versions=VERSIONS,
        rope_frequencies=[float(f"{f:.9g}") for f in frequencies.tolist()], cases=cases),
        indent=None)


STRINGS = [
    "", " ", "a", " a", "a ", "Hello, world!", "The access code of the Marlow archive is 7413.",
    "\nQuestion: What is the emblem of the Fenby depot? Answer:",
    "it's we're I'll they've he'd I'm", "don't CAN'T 'S 's's ''s n't",
    "it\u2019s \u2018quoted\u2019 \u201ctext\u201d", "2024-05-01 12:34:56", "v1.2.3-rc4", "3x4=12",
    "a1b22c333", " 1 22  333   4", "1,234,567.89", "0x1F 1e-5 7th", "no  two   three    four",
    " " * 40, "a" + " " * 17 + "b", "  leading", "end  ", "tab\tone\t\ttwo\t",
    "line\nline\n\nline\n\n\n", "crlf\r\nline\r\n\r\nend\r", " \n \n x", "\n \n",
    "a\u00a0b\u00a0\u00a0c", "\u2003em\u2002en\u2009thin\u200ahair\u3000ideographic\u202fnarrow",
    "\u1680ogham\u205fmath\u2028line\u2029par\u0085next", "zero\u200bwidth\u200d\u200c\ufeffbom",
    "\x00\x01\x1f\x7f control", "bell\x07 vt\x0b ff\x0c fs\x1c gs\x1d rs\x1e us\x1f",
    "soft\u00adhyphen", "e\u0301 vs \u00e9, n\u0303 vs \u00f1", "a\u0300\u0301\u0302\u0303b",
    "\u0301leading mark", "Z\u0351\u036b\u0343a\u0313l\u0334g\u0321o\u0337",
    "\u212bngstr\u00f6m \u00c5 A\u030a",
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 \u2764\ufe0f 1\ufe0f\u20e3",
    "x\U0001f600y\U0001f6003", "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "\u4e00\u4e8c\u4e09 \u3007 \u5341\u4e8c", "\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0661\u0662\u0663 \u0640",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0967\u0968\u0969", "\u0e44\u0e17\u0e22 \u0e51\u0e52",
    "\uff11\uff12\uff13 full width \uff21\uff22", "\u2160\u2167\u217b roman, \u2180 \u2188",
    "\u00bd \u00b2 \u00b3 \u00b9 \u2153 \u2460\u2461 \u24eb \u3251 \u32bf \u2776",
    "x\u00b2+y\u2083=\u00bdz",
    "\U0001d7d8\U0001d7d9 \U00010140 \U0001f100 \U00010e60 \u09f4 \u0bf0", "\u3021\u3022 \u16ee",
    "\u00aa \u00ba \u02b0 \u01c5 \u1f88 \u0294", "\u00e6\u00df\u0131\u0130 \ufb01 \u01c4",
    "\u20ac \u00a3 \u00a5 \u2211\u222b\u221a", "<|bos|>", "<|eos|>", "a<|bos|>b", " <|eos|> ",
    "<|bos|><|bos|>x", "<|bos |> <| eos|>", "<|bos|", "12<|eos|>34",
    "\ue000 private \ufffd \ufffe \uffff", "\U0010ffff \U000e0041 \U000f0000",
    "__init__.py --flag=value /usr/share/man", "a_b-c.d,e;f:g!h?i", "!!!??? ... ---", "({[<>]})",
    "CamelCaseWords and SHOUTING", "x" * 70, "ab" * 40, "7" * 30, "\u00e9" * 12, ".\n.\n .\n", "'",
    "''", "'s",
]
RANDOM_RANGES = [(0x20, 0x7e), (0x20, 0x7e), (0x09, 0x0d), (0x30, 0x39), (0x80, 0x17f),
                 (0x300, 0x36f), (0x370, 0x52f), (0x5d0, 0x66f), (0x900, 0x97f), (0x2000, 0x206f),
                 (0x2150, 0x218f), (0x2460, 0x24ff), (0x3000, 0x30ff), (0x4e00, 0x4eff),
                 (0xff00, 0xff5e), (0x10100, 0x1018f), (0x1d7c0, 0x1d7ff), (0x1f300, 0x1f6ff)]


def random_string(rng):
    ranges = rng.sample(RANDOM_RANGES, rng.randrange(1, 4))
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randrange(1, 24)))


def tokenizer_cases():
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(MODEL, "tokenizer.json"))
    whole = transformers.AutoTokenizer.from_pretrained(MODEL)
    rng = random.Random("tokenizer fixtures")
    strings = STRINGS + [random_string(rng) for _ in range(160)]
    cases = []
    for text in strings:
        ids = tokenizer.encode(text).ids
        assert whole(text).input_ids == ids, text
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text).ids
        tokenizer.encode_special_tokens = False
        case = dict(text=text, ids=ids)
        if plain != ids:
            case["ids_of_plain_text"] = plain
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if decoded != text:
            case["decoded"] = decoded
        cases.append(case)
    decode = []
    for _ in range(60):  # ids in no sensible order: their bytes are often not UTF-8
        ids = [rng.randrange(2, 2048) if rng.random() < .3 else rng.randrange(0, 258)
               for _ in range(rng.randrange(1, 10))]
        decode.append(dict(ids=ids, text=tokenizer.decode(ids, skip_special_tokens=False),
                           text_without_special=tokenizer.decode(ids, skip_special_tokens=True)))
    write_json(os.path.join(FIXTURES, "tokenizer.json"), dict(
        tokenizer="models/semkv-tiny/tokenizer.json", versions=VERSIONS,
        meaning="ids: of text, special tokens recognised. ids_of_plain_text: the same with special "
                "tokens read as text, where that differs. decoded: what ids decode to, where that "
                "is not text. decode: any ids; invalid UTF-8 becomes U+FFFD.",
        cases=cases, decode=decode), indent=None)
    print(len(cases), "strings,", sum("ids_of_plain_text" in c for c in cases), "with special,",
          sum("decoded" in c for c in cases), "decode differently")


def main():
    torch.set_num_threads(1)
    os.makedirs(FIXTURES, exist_ok=True)
    tokenizer_cases()
    tiny_logits()
    random24()


if __name__ == "__main__":
    main()
