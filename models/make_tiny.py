#!/usr/bin/env python3
"""Make `models/tiny`: a Qwen3 of 0.7 M parameters that reads, remembers carelessly and answers. About 8 minutes on one core.

Three supervised stages on text that this script generates (seeded): copying exercises; a demonstrator that forgets a
little (kept as `tiny-mild`); a short stage on one that forgets a lot. The last is the base that reinforcement learning
starts from: see models/tiny/README.md for what it was seen to reach.

    python models/make_tiny.py --output models/tiny
    python models/make_tiny.py --skill bank --output models/tiny-bank     the same for Memory-R1's three stages
    python models/make_tiny.py --skill rerank --output models/tiny-rerank   and for RMM's choice of memories
    python models/make_tiny.py --skill arena --mild_steps 2000 --forgetful_steps 160 --output models/tiny-arena    all three: the arena's
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import time
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from memfactory.common.config import TrainConfig
from memfactory.common.files import write_json, write_jsonl
from memfactory.data.generators.bank_demonstrator import CAREFUL, CARELESS, bank_demonstrations
from memfactory.data.generators.demonstrator import FORGETFUL, MILD, demonstrations, echo_row
from memfactory.data.generators.dialog_reader import CAREFUL as CAREFUL_ALL
from memfactory.data.generators.dialog_reader import CARELESS as CARELESS_ALL
from memfactory.data.generators.dialog_reader import arena_demonstrations
from memfactory.data.generators.rerank_demonstrator import CANDIDATES, KEPT, rerank_demonstrations
from memfactory.data.generators.rerank_demonstrator import CAREFUL as CAREFUL_CHOICE
from memfactory.data.generators.rerank_demonstrator import CARELESS as CARELESS_CHOICE
from memfactory.data.tiny_tokenizer import make_tiny_tokenizer
from memfactory.trainers.mem_sft_trainer import MemSFTTrainer

BATCH = 48
READ_AS: dict[str, dict[str, object]] = {
    "memory": {"agent": "memagent", "agent_options": {"chunk_size": 16, "max_generate_length": 32}},
    "bank": {"agent": "memory_r1_agent", "agent_options": {"style": "lines", "near": 3, "answer_from": 8, "max_generate_length": 48}},
    "rerank": {
        "agent": "memory_rmm_agent",
        "agent_options": {
            "style": "lines", "near": 3, "answer_from": KEPT, "max_generate_length": 32, "extractor": "verbatim_extractor",
            "updater": "append_updater", "retriever": {"type": "rerank_retriever", "candidates": CANDIDATES}, "answerer": "answerer",
        },
    },
    "arena": {"agent": "memory_r1_agent", "agent_options": {"style": "lines", "near": 3, "answer_from": 8, "max_generate_length": 48}},
}  # fmt: skip
"""What memfactory.json says of each model: how it is meant to be read."""
TEACHERS = {
    "memory": (demonstrations, MILD, FORGETFUL),
    "bank": (bank_demonstrations, CAREFUL, CARELESS),
    "rerank": (rerank_demonstrations, CAREFUL_CHOICE, CARELESS_CHOICE),
    "arena": (arena_demonstrations, CAREFUL_ALL, CARELESS_ALL),
}
"""Of each skill the demonstrator, its careful habits and its careless ones."""


def new_model(vocab_size: int, eos: int, pad: int) -> Qwen3ForCausalLM:
    """A random Qwen3: 4 layers of width 128 with tied embeddings."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 300.0},
            eos_token_id=eos,
            pad_token_id=pad,
            bos_token_id=None,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models/tiny"))
    parser.add_argument("--work_dir", type=Path, default=Path("output/make_tiny"))
    skills = "memory: MemAgent's turns; bank: Memory-R1's; rerank: RMM's; arena: all of them, on dialogues"
    parser.add_argument("--skill", choices=list(READ_AS), default="memory", help=skills)
    share = "memory: the share of episodes that show the section before the memory; .9 for a base that is read so"
    parser.add_argument("--chunk_first", type=float, default=0.1, help=share)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--echo_steps", type=int, default=300)
    parser.add_argument("--mild_steps", type=int, default=1100)
    parser.add_argument("--forgetful_steps", type=int, default=120)
    args = parser.parse_args()
    shutil.rmtree(args.work_dir, ignore_errors=True)
    tokenizer = make_tiny_tokenizer()
    torch.manual_seed(args.seed)
    model = new_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    rng = random.Random(f"make_tiny/{args.seed}")
    teach, *habits = TEACHERS[args.skill]
    order = {"chunk_first": args.chunk_first} if args.skill == "memory" else {}
    careful, careless = (teach(args.seed + at, habit, **order) for at, habit in enumerate(habits))
    first = [echo_row(rng) for _ in range(args.echo_steps * BATCH)]
    first += itertools.islice(careful, args.mild_steps * BATCH)
    second = list(itertools.islice(careless, args.forgetful_steps * BATCH))
    stages = [("mild", first, 3e-3, 60, "trapezoid"), ("forgetful", second, 1e-3, 10, "linear")]
    start, log = time.process_time(), {}
    for name, rows, lr, warmup, schedule in stages:
        data = args.work_dir / f"{name}.jsonl"
        write_jsonl(data, rows)
        config = TrainConfig(
            trainer="mem_sft",
            data_path=str(data),
            output_dir=str(args.work_dir / name),
            batch_size=BATCH,
            optimizer="muon",
            lr=lr,
            weight_decay=0.0,
            adam_beta2=0.98,
            warmup_updates=warmup,
            lr_schedule=schedule,
            save_steps=0,
            seed=args.seed,
            threads=args.threads,
            device="cpu",
        )
        trainer = MemSFTTrainer(config, model, tokenizer)
        trainer.train()
        losses = [json.loads(line)["loss"] for line in (args.work_dir / name / "metrics.jsonl").read_text().splitlines()]
        log[name] = {"steps": len(losses), "loss_first": losses[0], "loss_last_50": sum(losses[-50:]) / len(losses[-50:])}
        log["cpu_minutes"] = (time.process_time() - start) / 60
        target = args.output if name == "forgetful" else args.output.with_name(f"{args.output.name}-{name}")
        export(model, tokenizer, target, READ_AS[args.skill])
        print(json.dumps(log))


def export(model: Qwen3ForCausalLM, tokenizer: object, folder: Path, read_as: dict[str, object]) -> None:
    """Write the folder that ships: bf16 weights, tokenizer, no generation settings."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    # How it is meant to be read: `memfactory eval --models models/tiny` needs no flags.
    write_json(folder / "memfactory.json", read_as)


if __name__ == "__main__":
    main()
