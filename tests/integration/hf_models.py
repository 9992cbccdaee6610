"""Models of transformers with random weights, and what the tests of semkv.hf ask of them."""
import torch
import transformers

import seeds

SHAPE = dict(vocab_size=300, hidden_size=128, intermediate_size=128, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, head_dim=64,
             max_position_embeddings=1024, bos_token_id=0, eos_token_id=None, pad_token_id=0)
SLIDING = dict(sliding_window=64, layer_types=["sliding_attention", "full_attention",
                                               "full_attention"])
EVERYTHING = dict(policy="cluster", budget=1024, force_sparse=True)


def make_model(kind, attention="sdpa", dtype="float32", **changes):
    """A model with random weights, large enough that tokens attend to each other."""
    torch.manual_seed(seeds.SEED)
    config = transformers.AutoConfig.for_model(kind, **{**SHAPE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=getattr(torch, dtype))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    return model.eval()


def make_ids(*lengths):
    """Random ids and attention mask of a batch of prompts, padded on the left."""
    generator = torch.Generator().manual_seed(seeds.SEED)
    most = max(lengths)
    ids = torch.randint(1, 300, (len(lengths), most), generator=generator)
    mask = (torch.arange(most) >= most - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def generate(model, inputs, **options):
    return model.generate(**inputs, **{
        "max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True,
        "output_logits": True, **options})


def difference(one, other):
    """The largest between the logits of two runs, which must have written the same tokens."""
    assert torch.equal(one.sequences, other.sequences)
    return max((a - b).abs().max().item() for a, b in zip(one.logits, other.logits, strict=True))


def forwards(handle):
    return handle.stats()["forwards"]
