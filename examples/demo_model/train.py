"""Trains the demo model from nothing on freshly drawn scenes, on two CPU cores.

Knows the curriculum, the optimiser's schedule, checkpoints and the progress line.
Does not know how scenes are drawn or how answers are judged on held-out questions.

    python examples/demo_model/train.py --output build/demo_model
"""

from __future__ import annotations

import argparse
import math
import random
import signal
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkpoint
from model_files import demo_tokenizer, new_model, write_folder, write_weights
from packing import MERGED, Batch, Packer, Recipe, model_size
from questions import KINDS, Size
from training_forward import answer_loss

HERE = Path(__file__).resolve().parent
PATCHES_PER_BATCH = 1024
# The family of a step's second batch; the first is always of shapes. From the late step on, the
# kinds that are learned slowly are asked more often and numbers are of one digit.
FAMILY_SHARES = {"shapes": 0.2, "digit": 0.3, "pair": 0.47, "chat": 0.03}
LATE_SHARES = {"shapes": 0.35, "digit": 0.2, "pair": 0.43, "chat": 0.02}
EARLY_DIGITS = (1, 1, 2, 3)
LATE_FAVOURED = ("position", "count_some", "position", "count_some", "pair_same", "pair_find")
LATE_STEP = 5656
# From this step on pictures come in all sizes and mostly oblong.
VARIED_STEP = 7462
# Short rotary wavelengths teach places quickly but hide which shape a word means; from this step
# on the published, longer ones are used.
FIRST_ROPE_THETA = 30.0
THETA_SWITCH_STEP = 2359
# From this step on some questions follow up earlier turns of the conversation.
TURNS_STEP = 14000
FOLLOW_UPS = 0.4
# How far through the curriculum and the cosine the run is at these steps, and evenly between.
KNOTS: tuple[tuple[int, float], ...] = (
    (0, 0.0),
    (2768, 0.184533),
    (LATE_STEP, 0.47062),
    (TURNS_STEP, 1.0),
    (TURNS_STEP, 0.75),
)
# How often a picture holds one shape, two shapes and so on, at first and later on.
EARLY_COUNTS: tuple[float, ...] = (70, 20, 4, 2, 2, 2)
FINAL_COUNTS: tuple[float, ...] = (20, 20, 20, 15, 13, 12)


def curriculum_progress(step: int, steps: int) -> float:
    """How far through the curriculum and the learning rate's cosine a step is, 0 to 1."""
    knots = (*KNOTS, (steps, 1.0))
    for (start, low), (end, high) in pairwise(knots):
        if step < end:
            return low + (high - low) * (step - start) / (end - start)
    return 1.0


def set_rope_theta(model: Qwen2_5_VLForConditionalGeneration, theta: float) -> None:
    """Give the language model's rotary embedding another base."""
    frequencies = model.model.language_model.rotary_emb.inv_freq
    size = len(frequencies)
    frequencies.copy_(theta ** -(torch.arange(size, dtype=torch.float32) / size))


def draw_varied_size(rng: random.Random) -> Size:
    """A picture size of the last stage: mostly oblong, one in ten large, few of 448 pixels."""
    lottery = rng.random()
    if lottery < 0.2:
        return 112, 112
    if lottery > 0.9:
        return rng.choice(range(252, 449, MERGED)), rng.choice(range(252, 449, MERGED))
    if lottery > 0.78:
        return rng.randint(112, 252), rng.randint(112, 252)
    return rng.choice(range(112, 253, MERGED)), rng.choice(range(112, 253, MERGED))


def draw_size(rng: random.Random, step: int, progress: float) -> Size:
    """A picture size of the curriculum: small first, large late."""
    if step >= VARIED_STEP:
        return draw_varied_size(rng)
    lottery = rng.random()
    if progress < 0.03 or lottery < 0.55 - 0.25 * progress:
        return 112, 112
    largest = 168 if progress < 0.3 else 224
    if progress > 0.3 and lottery > 0.85:
        return rng.randint(112, largest), rng.randint(112, largest)
    sides = list(range(112, largest + 1, MERGED))
    width = rng.choice(sides)
    return width, width if rng.random() < 0.5 else rng.choice(sides)


def draw_batch(
    packer: Packer, family: str, step: int, progress: float, rng: random.Random
) -> Batch:
    """One batch of the curriculum, of as many scenes as the patch budget allows."""
    sizes = (draw_size(rng, step, progress), draw_size(rng, step, progress))
    if family == "pair" and rng.random() < 0.6:
        sizes = (sizes[0], sizes[0])
    used = sizes if family == "pair" else sizes[:1]
    patches = sum(w * h // 196 for w, h in map(model_size, used))
    ramp = min(1.0, max(0.0, progress - 0.03) / 0.15)
    late = step >= LATE_STEP
    recipe = Recipe(
        scenes=8 if family == "chat" else max(2, min(16, round(PATCHES_PER_BATCH / patches))),
        asked={"shapes": 7, "digit": 3, "pair": 5, "chat": 4}[family],
        counts=tuple(
            early + ramp * (final - early)
            for early, final in zip(EARLY_COUNTS, FINAL_COUNTS, strict=True)
        ),
        digits=(1,) if late else EARLY_DIGITS,
        favoured=LATE_FAVOURED if late else (),
        follow_ups=FOLLOW_UPS if step >= TURNS_STEP else 0.0,
    )
    return packer.pack(family, sizes, rng, recipe)


def learning_rate(step: int, progress: float, peak: float) -> float:
    """Warm-up over 200 steps, then a cosine down to a hundredth of the peak."""
    if step < 200:
        return peak * (step + 1) / 200
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Scores:
    """Exact answers by kind since the last report; every scene is new, so this is held out."""

    def __init__(self) -> None:
        self.right: dict[str, int] = defaultdict(int)
        self.asked: dict[str, int] = defaultdict(int)

    def add(self, batch: Batch, right: torch.Tensor) -> None:
        """Count the questions whose every answer token was the model's first choice."""
        exact = torch.ones(len(batch.kinds), dtype=torch.long)
        exact.scatter_reduce_(0, batch.asked_by, right.long(), "amin")
        for kind, hit in zip(batch.kinds, exact.tolist(), strict=True):
            self.asked[kind] += 1
            self.right[kind] += hit

    def line(self) -> str:
        """One short line of percentages by kind."""
        return " ".join(
            f"{kind}={100 * self.right[kind] / self.asked[kind]:.0f}"
            for kind in KINDS
            if self.asked[kind]
        )


def make_optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW for embeddings, patches and vectors."""
    inner, outer, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1:
            vectors.append(parameter)
        elif parameter.ndim == 2 and "embed" not in name:
            inner.append(parameter)
        else:
            outer.append(parameter)
    groups = [
        {"params": outer, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True),
        torch.optim.Muon(inner, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]


def batch_gradients(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, bf16: bool
) -> tuple[float, torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Loss, right tokens and gradients of one batch; two of these run side by side."""
    torch.set_flush_denormal(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, right = answer_loss(model, batch)
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss.item(), right, grads


class Report:
    """The progress line."""

    def __init__(self, options: argparse.Namespace, first: int) -> None:
        self._options = options
        self._first = first
        self._began = self._since = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._scores, self._loss = Scores(), 0.0

    def add(self, batch: Batch, loss: float, right: torch.Tensor) -> None:
        """Count one of a step's two batches."""
        self._scores.add(batch, right)
        self._loss += loss / 2

    def step(self, done: int) -> None:
        """Print a line now and then."""
        options = self._options
        if done % options.report:
            return
        now = time.monotonic()
        pace = (now - self._began) / (done - self._first)
        print(
            f"step {done}/{options.steps} loss {self._loss / options.report:.3f}"
            f" {1000 * (now - self._since) / options.report:.0f} ms/step"
            f" remaining {pace * (options.steps - done) / 60:.1f} min | {self._scores.line()}",
            flush=True,
        )
        self._since = now
        self._clear()


class Trainer:
    """Model, optimisers and the one step that is repeated."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        tokenizer = demo_tokenizer(options.output)
        self.model = new_model(tokenizer)
        self.optimizers = make_optimizers(self.model)
        self._packer = Packer(tokenizer)
        self._theta = self.model.config.text_config.rope_parameters["rope_theta"]
        self._pool = ThreadPoolExecutor(1)

    def step(self, step: int, report: Report) -> None:
        """Two batches side by side, one update."""
        options, model = self._options, self.model
        rng = random.Random(f"{options.seed}/{step}")
        progress = curriculum_progress(step, options.steps)
        set_rope_theta(model, FIRST_ROPE_THETA if step < THETA_SWITCH_STEP else self._theta)
        shares = LATE_SHARES if step >= LATE_STEP else FAMILY_SHARES
        other = rng.choices(list(shares), list(shares.values()))[0]
        batches = [
            draw_batch(self._packer, family, step, progress, rng) for family in ("shapes", other)
        ]
        ahead = self._pool.submit(batch_gradients, model, batches[0], options.bf16)
        second = batch_gradients(model, batches[1], options.bf16)
        for batch, (loss, right, _) in zip(batches, (ahead.result(), second), strict=True):
            report.add(batch, loss, right)
        for parameter, *both in zip(model.parameters(), ahead.result()[2], second[2], strict=True):
            parameter.grad = sum(grad for grad in both if grad is not None) / 2
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, progress, options.peak)
            optimizer.step()
            optimizer.zero_grad()


def train(options: argparse.Namespace) -> None:
    """Run the schedule from the checkpoint, or from nothing, to its last step."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    trainer = Trainer(options)
    model, optimizers = trainer.model, trainer.optimizers
    first = 0
    if options.checkpoint.exists():
        first = checkpoint.load(options.checkpoint, model, optimizers)
    options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    write_folder(model, options.output)
    report, saved_at = Report(options, first), time.monotonic()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    for step in range(first, options.steps):
        trainer.step(step, report)
        done = step + 1
        report.step(done)
        overdue = time.monotonic() - saved_at > options.save_every
        if overdue or stopped.is_set() or done == options.steps:
            saved_at = time.monotonic()
            checkpoint.save(options.checkpoint, model, optimizers, done)
            write_weights(model, options.output)
        if stopped.is_set():
            break


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write the model to")
    parser.add_argument("--checkpoint", type=Path, default=Path("build/demo_training.safetensors"))
    parser.add_argument("--steps", type=int, default=16400)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="for each of the two batches")
    parser.add_argument("--report", type=int, default=100, help="steps between progress lines")
    parser.add_argument("--save-every", type=float, default=180.0, help="seconds")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
