"""What a served model is: sizes, control tokens, picture geometry and its fingerprint.

Reads the small files of a Hugging Face folder, both the flat and the nested layout of Qwen-VL
configurations. Does not know weights beyond their headers, and no architecture.
"""

import json
from pathlib import Path
from typing import Any, cast

import msgspec

from triptych.core.errors import ConfigError
from triptych.core.hashing import digest
from triptych.inputs import oracle_words

_MAX_HEADER_BYTES = 100_000_000
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096
_BICUBIC = 3


class ImageGeometry(msgspec.Struct, frozen=True):
    """How a picture is cut: Qwen2-VL's native-resolution processor (arXiv 2409.12191, 2.1)."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def factor(self) -> int:
        """Pixels on a side of one visual token; sides are resized to its multiples."""
        return self.patch_size * self.merge_size

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything here; part of the cache key of every picture."""
        return digest("geometry", msgspec.msgpack.encode(self)).hex()[:32]


class ModelCard(msgspec.Struct, frozen=True):
    """One served model as doors, router and stages need to know it."""

    name: str
    family: str
    """``model_type`` of the configuration, or ``oracle``."""
    fingerprint: str
    """Equal exactly for folders with the same configuration, tokenizer and weight files."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_positions: int
    image: ImageGeometry
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int


def load_card(path: str) -> ModelCard:
    """The card of the model in the folder ``path``, or of the oracle.

    Raises ConfigError that names the file and the key that is missing or unusable.
    """
    if path == oracle_words.NAME:
        return _oracle_card()
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"model.path: {path} is not a folder")
    config = read_json(folder / "config.json")
    text = config.get("text_config", config)
    return ModelCard(
        name=folder.resolve().name,
        family=_required(config, "model_type"),
        fingerprint=_fingerprint(folder),
        vocab_size=_required(text, "vocab_size"),
        eos_token_ids=_eos(folder, config),
        max_positions=_required(text, "max_position_embeddings"),
        image=_geometry(folder),
        image_token_id=_token(folder, config, "image_token_id", "<|image_pad|>"),
        vision_start_token_id=_token(folder, config, "vision_start_token_id", "<|vision_start|>"),
        vision_end_token_id=_token(folder, config, "vision_end_token_id", "<|vision_end|>"),
    )


def read_json(path: Path, *, is_optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; ``{}`` for an optional file that is not there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if is_optional:
            return {}
        raise ConfigError(f"model.path: {path} is missing") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"model.path: {path} is not a JSON object")
    return cast(dict[str, Any], value)


def _oracle_card() -> ModelCard:
    geometry = ImageGeometry(
        patch_size=oracle_words.PATCH_SIZE,
        merge_size=oracle_words.MERGE_SIZE,
        temporal_patch_size=oracle_words.TEMPORAL_PATCH_SIZE,
        min_pixels=oracle_words.MIN_PIXELS,
        max_pixels=oracle_words.MAX_PIXELS,
        mean=oracle_words.MEAN,
        std=oracle_words.STD,
    )
    return ModelCard(
        name=oracle_words.NAME,
        family=oracle_words.NAME,
        fingerprint=digest("oracle", geometry.fingerprint.encode()).hex()[:32],
        vocab_size=oracle_words.VOCAB_SIZE,
        eos_token_ids=(oracle_words.EOS,),
        max_positions=oracle_words.MAX_POSITIONS,
        image=geometry,
        image_token_id=oracle_words.IMAGE_PAD,
        vision_start_token_id=oracle_words.VISION_START,
        vision_end_token_id=oracle_words.VISION_END,
    )


def _required(section: dict[str, Any], key: str) -> Any:
    value = section.get(key)
    if value is None:
        raise ConfigError(f"model.path: config.json has no {key}")
    return value


def _eos(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """As Transformers' ``generate``: generation_config.json first, then the model's config."""
    text = config.get("text_config", config)
    generation = read_json(folder / "generation_config.json", is_optional=True)
    for section in (generation, config, text):
        value = section.get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value:
            return tuple(int(token) for token in value)
    tokenizer = read_json(folder / "tokenizer_config.json", is_optional=True)
    content = tokenizer.get("eos_token")
    if isinstance(content, dict):
        content = content.get("content")
    if isinstance(content, str):
        return (_added_token(folder, content),)
    raise ConfigError("model.path: no eos_token_id in generation_config.json or config.json")


def _token(folder: Path, config: dict[str, Any], key: str, content: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else _added_token(folder, content)


def _added_token(folder: Path, content: str) -> int:
    for token in read_json(folder / "tokenizer.json").get("added_tokens", ()):
        if token.get("content") == content:
            return int(token["id"])
    raise ConfigError(f"model.path: tokenizer.json has no token {content}")


def _geometry(folder: Path) -> ImageGeometry:
    """From preprocessor_config.json, or the processor_config.json that newer writers leave."""
    section = read_json(folder / "preprocessor_config.json", is_optional=True)
    if not section:
        section = read_json(folder / "processor_config.json").get("image_processor", {})
    size = section.get("size") or {}
    if section.get("resample", _BICUBIC) != _BICUBIC or not section.get("do_resize", True):
        raise ConfigError("model.path: only bicubic resizing of pictures is supported")
    least = section.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge")
    most = section.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge")
    geometry = ImageGeometry(
        patch_size=section.get("patch_size", 14),
        merge_size=section.get("merge_size", 2),
        temporal_patch_size=section.get("temporal_patch_size", 2),
        min_pixels=least or 56 * 56,
        max_pixels=most or 28 * 28 * 1280,
        mean=_triple(section, "image_mean", (0.48145466, 0.4578275, 0.40821073)),
        std=_triple(section, "image_std", (0.26862954, 0.26130258, 0.27577711)),
    )
    if not 0 < geometry.min_pixels <= geometry.max_pixels:
        raise ConfigError("model.path: min_pixels and max_pixels of the preprocessor do not fit")
    return geometry


def _triple(
    section: dict[str, Any], key: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    values = section.get(key) or default
    if len(values) != len(default):
        raise ConfigError(f"model.path: {key} of the preprocessor needs three values")
    return float(values[0]), float(values[1]), float(values[2])


def _fingerprint(folder: Path) -> str:
    """Digest of the small files, and of header, size and evenly spread samples of each weight file:
    whole files of many gigabytes would take minutes at every start."""
    fields: list[bytes] = []
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        file = folder / name
        fields.append(file.read_bytes() if file.is_file() else b"")
    fields.append((folder / "tokenizer.json").read_bytes())
    for weights in sorted(folder.glob("*.safetensors")):
        fields.extend([weights.name.encode(), _weights_identity(weights)])
    return digest("model", *fields).hex()[:32]


def _weights_identity(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(size, _MAX_HEADER_BYTES):
            raise ConfigError(f"model.path: {path} is not a safetensors file")
        fields = [size.to_bytes(8, "little"), file.read(header_bytes)]
        start, body = 8 + header_bytes, size - 8 - header_bytes
        for index in range(_NUM_SAMPLES):
            file.seek(start + body * index // _NUM_SAMPLES)
            fields.append(file.read(_SAMPLE_BYTES))
    return digest("weights", *fields)
