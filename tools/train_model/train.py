"""Trains the model by a recipe of phases counted in steps, and exports it for transformers.

Seeded throughout: the same recipe, work folder, torch version, thread count and machine give the
same losses.
"""
import argparse
import dataclasses
import json
import os
import time
import tomllib

import torch
from safetensors.torch import save_file

from documents import Kind
from muon import Muon
from net import Config, LanguageModel, initialise
from rows import RowMaker

LOSS_WEIGHTS = {Kind.TEXT: .1, Kind.ANSWER: 1., Kind.VALUE: .02, Kind.REAL_FILLER: .03,
                Kind.REAL_TEXT: .12, Kind.RESTATED: .3}
TOKENIZER_CONFIG = {
    "bos_token": "<|bos|>", "clean_up_tokenization_spaces": False, "eos_token": "<|eos|>",
    "model_max_length": Config.max_positions, "tokenizer_class": "PreTrainedTokenizerFast"}


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of the recipe; recipe.toml explains the fields."""
    tokens: int
    rows: int
    steps: int
    rate: tuple
    real_rows: float
    restated: float
    gaps: float
    span: int
    scored: float
    warm_steps: int

    def multiplier(self, step):
        begin, end = self.rate
        warm = min(1., (step + 1) / max(1, self.warm_steps))
        return (begin + (end - begin) * step / self.steps) * warm


def read_recipe(path):
    """-> (recipe, [Phase])"""
    with open(path, "rb") as file:
        recipe = tomllib.load(file)
    return recipe, [Phase(**{**recipe["defaults"], **phase}) for phase in recipe["phase"]]


def choose_positions(ids, kinds, scored, numbers):
    """-> inputs, chosen positions of the flattened batch, their targets and loss weights.

    Answers first, then others at random, random values last; always the same number.
    """
    table = torch.tensor([LOSS_WEIGHTS[kind] for kind in Kind])
    inputs = torch.from_numpy(ids[:, :-1].copy())
    targets = torch.from_numpy(ids[:, 1:].copy()).reshape(-1)
    kinds = torch.from_numpy(kinds[:, 1:].copy()).reshape(-1)
    priority = torch.rand(len(targets), generator=numbers)
    priority += ((kinds == Kind.ANSWER) | (kinds == Kind.RESTATED)).float()
    priority -= (kinds == Kind.VALUE).float()
    chosen = priority.topk(int(len(targets) * scored)).indices.sort().values
    return inputs, chosen, targets[chosen], table[kinds[chosen]]


class Trainer:
    """The model, its two optimisers and how far they have come."""

    def __init__(self, recipe, phases, rows):
        self.recipe, self.phases, self.rows = recipe, phases, rows
        torch.manual_seed(recipe["seed"])
        self.model = LanguageModel(Config())
        initialise(self.model)
        named = list(self.model.named_parameters())
        self.others = [p for name, p in named if p.dim() == 1 or "embed" in name]
        self.muon = Muon([p for name, p in named if p.dim() == 2 and "embed" not in name],
                         recipe["muon_learning_rate"])
        self.rates = [recipe["embedding_learning_rate"], recipe["norm_learning_rate"]]
        self.adam = torch.optim.AdamW(
            [dict(params=[p for p in self.others if p.dim() == 2]),
             dict(params=[p for p in self.others if p.dim() == 1])],
            lr=recipe["norm_learning_rate"], betas=(.9, .98), weight_decay=0)

    def step(self, phase_index, step):
        """One optimiser step; returns the loss."""
        phase, seed = self.phases[phase_index], self.recipe["seed"]
        ids, kinds, positions = self.rows.batch(phase, seed, phase_index, step)
        numbers = torch.Generator().manual_seed((seed * 1000 + phase_index) * 1000003 + step)
        inputs, chosen, targets, weights = choose_positions(ids, kinds, phase.scored, numbers)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model(inputs, torch.from_numpy(positions), chosen, targets, weights)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.others, 1.)
        multiplier = phase.multiplier(step)
        self.muon.step(multiplier)
        for group, rate in zip(self.adam.param_groups, self.rates):
            group["lr"] = rate * multiplier
        self.adam.step()
        return loss.item()

    def save(self, path, phase_index):
        state = dict(model=self.model.state_dict(), adam=self.adam.state_dict(),
                     muon=self.muon.state_dict(), phases_done=phase_index + 1)
        torch.save(state, path + ".part")
        os.replace(path + ".part", path)

    def load(self, path):
        """-> how many phases are done"""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.muon.load_state_dict(state["muon"])
        return state["phases_done"]


def export(model, tokenizer, folder):
    """Writes a folder that transformers and vLLM load."""
    os.makedirs(folder, exist_ok=True)
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous()
               for name, tensor in model.state_dict().items()}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(folder, "model.safetensors"), 0o644)
    for name, fields in (("config.json", model.config.to_hugging_face()),
                         ("tokenizer_config.json", TOKENIZER_CONFIG)):
        with open(os.path.join(folder, name), "w") as file:
            json.dump(fields, file, indent=1)
            file.write("\n")
    tokenizer.save(os.path.join(folder, "tokenizer.json"))


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train the retrieval model.")
    parser.add_argument("--work", required=True, help="folder with real_train.txt, tokenizer.json")
    parser.add_argument("--out", required=True, help="folder to export the model to")
    parser.add_argument("--recipe", default=os.path.join(os.path.dirname(__file__), "recipe.toml"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on after the last finished phase")
    parser.add_argument("--max-steps", type=int, help="at most so many steps of each phase")
    parser.add_argument("--log-every", type=int, default=20)
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    recipe, phases = read_recipe(arguments.recipe)
    rows = RowMaker(arguments.work)
    trainer = Trainer(recipe, phases, rows)
    checkpoint = os.path.join(arguments.work, "checkpoint.pt")
    first = trainer.load(checkpoint) if arguments.resume else 0
    for phase_index in range(first, len(phases)):
        phase = phases[phase_index]
        steps = min(phase.steps, arguments.max_steps or phase.steps)
        losses, begin = [], time.time()
        for step in range(steps):
            losses.append(trainer.step(phase_index, step))
            if (step + 1) % arguments.log_every == 0 or step + 1 == steps:
                rate = (step + 1) * phase.tokens * phase.rows / (time.time() - begin)
                recent = losses[-arguments.log_every:]
                print(f"phase {phase_index} ({phase.tokens} tokens) step {step + 1}/{phase.steps} "
                      f"loss {sum(recent) / len(recent):.6f} {rate:.0f} tokens/s", flush=True)
        trainer.save(checkpoint, phase_index)
        export(trainer.model, rows.tokenizer, arguments.out)


if __name__ == "__main__":
    main()
