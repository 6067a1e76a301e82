"""The baseline, in a process of its own: plain Transformers ``generate``, one request at a time.

No server and no sockets between the request and the model: requests wait in order of arrival for
the one loop. Settings are the best found for it: inference mode, SDPA attention, and the thread
count that was quicker in a trial. Reads runs from stdin and writes outcomes to stdout, a JSON
line each.
"""

import argparse
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from PIL import Image

from bench.client import Outcome
from bench.systems import Run
from bench.workloads import Ask, draw

_PLACEHOLDER = "<|image_pad|>"


class _Times:
    """Notes when tokens come; the first thing that ``generate`` hands over is the prompt."""

    def __init__(self) -> None:
        self.prompt_seen = False
        self.times: list[float] = []

    def put(self, _: object) -> None:
        if self.prompt_seen:
            self.times.append(time.monotonic())
        self.prompt_seen = True

    def end(self) -> None:
        """Nothing is buffered."""


class Peer:
    """A Qwen-VL checkpoint in Transformers' own classes."""

    def __init__(self, folder: Path, device: str) -> None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._device = device
        loader: Any = transformers.AutoModelForImageTextToText
        self._model = loader.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self._model.to(device).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self._processor: Any = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder)

    @torch.inference_mode()
    def answer(self, ask: Ask) -> list[float]:
        """Monotonic times of the tokens of one answer; everything from PNG to token counts."""
        inputs = self._inputs(ask)
        times = _Times()
        self._model.generate(
            **inputs, do_sample=False, max_new_tokens=ask.max_tokens, streamer=times
        )
        return times.times

    def _inputs(self, ask: Ask) -> dict[str, Any]:
        content: list[dict[str, str]] = [{"type": "image"} for _ in ask.pictures]
        content.append({"type": "text", "text": ask.question})
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in ask.pictures]
        pixels = self._processor(images=pictures, return_tensors="pt")
        for grid in pixels["image_grid_thw"]:
            count = int(grid.prod()) // self._processor.merge_size**2
            text = text.replace(_PLACEHOLDER, "\0" * count, 1)
        ids = self._tokenizer(text.replace("\0", _PLACEHOLDER), return_tensors="pt")["input_ids"]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels["pixel_values"].to(self._model.dtype),
            "image_grid_thw": pixels["image_grid_thw"],
            "mm_token_type_ids": (ids == self._model.config.image_token_id).int(),
        }
        return {name: value.to(self._device) for name, value in inputs.items()}


def quicker_threads(peer: Peer) -> int:
    """The number of arithmetic threads that answers a few trial questions sooner."""
    trials = draw(3, seed=1)
    best, best_s = 1, float("inf")
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        peer.answer(trials[0])
        began_s = time.monotonic()
        for ask in trials:
            peer.answer(ask)
        seconds = time.monotonic() - began_s
        if seconds < best_s:
            best, best_s = threads, seconds
    torch.set_num_threads(best)
    return best


def serve_one(peer: Peer, ask: Ask, arrival_s: float, began_s: float) -> Outcome:
    """Wait for the arrival if it is still to come, then answer."""
    time.sleep(max(0.0, began_s + arrival_s - time.monotonic()))
    times = tuple(at - began_s for at in peer.answer(ask))
    return Outcome(arrival_s, times, time.monotonic() - began_s, "ok")


def main() -> None:
    """Load, say ``ready``, then answer runs until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("device")
    words = parser.parse_args()
    peer = Peer(words.model, words.device)
    threads = quicker_threads(peer)
    _say({"ready": True, "threads": threads, "version": transformers.__version__})
    for line in sys.stdin.buffer:
        run = msgspec.json.decode(line, type=Run)
        began_s = time.monotonic() + 0.05
        for ask, arrival_s in zip(run.asks, run.arrivals_s, strict=True):
            _say(serve_one(peer, ask, arrival_s, began_s))


def _say(value: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
