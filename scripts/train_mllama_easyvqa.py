"""Train mllama-easyvqa: Llama 3.2 Vision's architecture with 1.7 million weights, on easy-VQA.

    pip install --no-deps easy-vqa==1.0
    OMP_WAIT_POLICY=passive python scripts/train_mllama_easyvqa.py --into my-mllama

The shipped weights were made with these two stages and budgets (12 and 27 minutes on two busy cores, seed 0) by a
prototype of this script; the budget is time, so another machine takes other steps and gets other weights. With the
defaults expect 99.5 % and more. `--tower-seconds 5 --seconds 10` shows in a minute that everything runs, and learns
nothing.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from easyvqa_model import data, shape, stages
from items import easyvqa
from transformers import GenerationConfig


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train mllama-easyvqa.")
    parser.add_argument("--into", type=Path, required=True, help="folder to write")
    parser.add_argument("--tower-seconds", type=float, default=720.0)
    parser.add_argument("--seconds", type=float, default=1620.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    given = _arguments()
    torch.set_num_threads(given.threads)
    random.seed(given.seed)
    words = shape.tokenizer(data.words())
    tool = shape.processor(words)
    model = shape.fresh(shape.configuration(words), given.seed)
    train, test = data.load("train", tool), data.load("test", tool)
    shapes = words.convert_tokens_to_ids(list(easyvqa.KINDS["shape"]))
    colours = words.convert_tokens_to_ids(easyvqa.split("train")[2])
    pad, end = int(words.pad_token_id), int(words.eos_token_id)
    steps = [stages.tower(model, train, shapes, colours, given.tower_seconds)]
    steps.append(stages.everything(model, train, end, pad, given.seconds))
    found = stages.score(model, test, pad)
    model.to(torch.bfloat16)
    # No length: a max_new_tokens kept here would silently override what lm-eval asks for.
    model.generation_config = GenerationConfig(bos_token_id=words.bos_token_id, eos_token_id=end, pad_token_id=pad)
    model.save_pretrained(given.into)
    tool.save_pretrained(given.into)
    print(json.dumps({"steps": steps, "test": found, "seed": given.seed}))


if __name__ == "__main__":
    main()
