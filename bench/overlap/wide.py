"""The demo model with more KV per token: every query head gets a KV head of its own.

Keys and values of a shared head are repeated, so that the answers are the demo model's while a
token has three times the bytes, as much as a transfer needs to be seen. Longer prompts are allowed.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

MAX_POSITIONS = 32_768
_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
          "preprocessor_config.json", "generation_config.json")  # fmt: skip


class _Tensor(NamedTuple):
    dtype: str
    shape: list[int]
    data: bytes


def write(model: Path, folder: Path) -> int:
    """Write the widened ``model`` (a folder in the published, flat layout, one safetensors file) to
    ``folder``; gives the bytes of KV that one token has in float32. Raises OSError, ValueError."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((model / "config.json").read_text())
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    tensors = _read((model / "model.safetensors").read_bytes())
    for name, tensor in tensors.items():
        if ".k_proj." in name or ".v_proj." in name:
            tensors[name] = _repeat(tensor, shared, heads // shared)
    (folder / "model.safetensors").write_bytes(_written(tensors))
    config |= {"num_key_value_heads": heads, "max_position_embeddings": MAX_POSITIONS}
    (folder / "config.json").write_text(json.dumps(config))
    for name in _FILES:
        shutil.copy(model / name, folder / name)
    return int(config["num_hidden_layers"] * 2 * config["hidden_size"] * 4)


def _repeat(tensor: _Tensor, heads: int, times: int) -> _Tensor:
    """Rows of each head ``times`` times, the copies of one head next to each other: query heads
    ``[i * times, (i + 1) * times)`` read KV head ``i``."""
    size = len(tensor.data) // heads
    rows = b"".join(tensor.data[i * size : (i + 1) * size] * times for i in range(heads))
    return _Tensor(tensor.dtype, [tensor.shape[0] * times, *tensor.shape[1:]], rows)


def _read(file: bytes) -> dict[str, _Tensor]:
    """Tensors of a safetensors file: length of the header, header (JSON), bytes."""
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    return {
        name: _Tensor(about["dtype"], about["shape"], file[slice(*(start + at for at in places))])
        for name, about in header.items()
        if (places := about.get("data_offsets")) is not None
    }


def _written(tensors: dict[str, _Tensor]) -> bytes:
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + len(tensor.data)
        about = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        header[name] = about
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    return len(words).to_bytes(8, "little") + words + b"".join(t.data for t in tensors.values())
