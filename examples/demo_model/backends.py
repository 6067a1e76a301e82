"""Ways to get an answer from the model: Transformers in this process, or a server.

Knows how each backend is asked about pictures. Does not know which questions are
asked, nor their right answers.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

Request = tuple[Sequence[Image.Image], str]
Backend = Callable[[Sequence[Request]], list[str]]
MAX_NEW_TOKENS = 48


def transformers_backend(folder: Path, batch: int = 16) -> Backend:
    """Greedy answers by Transformers in float32, batched by prompt length."""
    import torch
    from transformers import (
        AutoTokenizer,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    image_id = model.config.image_token_id

    def tokens(request: Request) -> tuple[list[int], list[torch.Tensor], list[torch.Tensor]]:
        pictures, question = request
        pieces, grids = [], []
        for picture in pictures:
            out = processor(images=[picture], return_tensors="pt")
            pieces.append(out["pixel_values"])
            grids.append(out["image_grid_thw"])
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        for grid in grids:
            text = text.replace("<|image_pad|>", "\0" * (int(grid.prod()) // 4), 1)
        return tokenizer(text.replace("\0", "<|image_pad|>")).input_ids, pieces, grids

    def answer(requests: Sequence[Request]) -> list[str]:
        prepared = [tokens(request) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: len(prepared[index][0]))
        answers = [""] * len(requests)
        while order:
            length = len(prepared[order[0]][0])
            group = [index for index in order[:batch] if len(prepared[index][0]) == length]
            order = order[len(group) :]
            ids = torch.tensor([prepared[index][0] for index in group])
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            pieces = [piece for index in group for piece in prepared[index][1]]
            if pieces:
                inputs["pixel_values"] = torch.cat(pieces)
                inputs["image_grid_thw"] = torch.cat([g for i in group for g in prepared[i][2]])
                inputs["mm_token_type_ids"] = (ids == image_id).int()
            with torch.inference_mode():
                out = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
            texts = tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
            for index, text in zip(group, texts, strict=True):
                answers[index] = text
        return answers

    return answer


def _png(picture: Image.Image) -> bytes:
    png = io.BytesIO()
    picture.save(png, format="PNG")
    return png.getvalue()


def _data_url(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(picture)).decode("ascii")


def http_backend(url: str, parallel: int) -> Backend:
    """Answers of an OpenAI-compatible server, asked with the standard library."""
    with urllib.request.urlopen(url.rstrip("/") + "/v1/models", timeout=60) as response:
        model = json.load(response)["data"][0]["id"]

    def ask(request: Request) -> str:
        pictures, question = request
        content: list[dict[str, object]] = [
            {"type": "image_url", "image_url": {"url": _data_url(picture)}} for picture in pictures
        ]
        content.append({"type": "text", "text": question})
        body = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": MAX_NEW_TOKENS,
        }
        post = urllib.request.Request(
            url.rstrip("/") + "/v1/chat/completions",
            data=json.dumps(body).encode("utf-8"),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(post, timeout=300) as response:
            reply = json.load(response)
        return str(reply["choices"][0]["message"]["content"])

    def answer(requests: Sequence[Request]) -> list[str]:
        with ThreadPoolExecutor(parallel) as pool:
            return list(pool.map(ask, requests))

    return answer


def grpc_backend(address: str, parallel: int) -> Backend:
    """Answers of the server's gRPC door."""
    import grpc

    from triptych.v1 import inference_pb2, inference_pb2_grpc

    stub = inference_pb2_grpc.InferenceStub(grpc.insecure_channel(address))

    def ask(request: Request) -> str:
        pictures, question = request
        parts = [inference_pb2.ContentPart(picture=_png(picture)) for picture in pictures]
        parts.append(inference_pb2.ContentPart(text=question))
        call = stub.Generate(
            inference_pb2.GenerateRequest(
                messages=[inference_pb2.ChatMessage(role="user", parts=parts)],
                max_tokens=MAX_NEW_TOKENS,
            ),
            timeout=300,
        )
        return "".join(response.delta.text for response in call)

    def answer(requests: Sequence[Request]) -> list[str]:
        with ThreadPoolExecutor(parallel) as pool:
            return list(pool.map(ask, requests))

    return answer
