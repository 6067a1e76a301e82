"""What a Hugging Face ``config.json`` says of a model, as values.

Reads the nested layout (``text_config``, ``vision_config``) and the older flat one. Knows keys and
their meaning; does not know which family a model is of, nor any tensor.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import msgspec

from triptych.core.errors import ConfigError

T = TypeVar("T", int, float, str, bool)
_MISSING: Any = object()


class TextSpec(msgspec.Struct, frozen=True):
    """A decoder with grouped-query attention."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_sections: tuple[int, ...]
    """How many of the ``head_dim / 2`` frequencies turn with time, height and width (M-RoPE)."""
    is_tied: bool
    """The output head is the embedding table."""


class VisionSpec(msgspec.Struct, frozen=True):
    """A tower over pictures of native resolution that ends in a patch merger."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    out_size: int
    norm: str
    """``rms`` or ``layer``."""
    mlp: str
    """``gated`` (gate, up, down) or ``plain`` (fc1, fc2)."""
    activation: str
    window_patches: int = 0
    """Side of an attention window in merged patches; 0: every block sees the whole picture."""
    full_blocks: tuple[int, ...] = ()
    """Blocks that see the whole picture nevertheless."""
    rope_theta: float = 10000.0

    @property
    def patch_values(self) -> int:
        """Numbers in one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


class PatchFields(TypedDict):
    """Fields of a ``VisionSpec`` that families name alike."""

    depth: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    rope_theta: float


class ModelSpec(msgspec.Struct, frozen=True):
    """Both halves of a vision-language model."""

    model_type: str
    text: TextSpec
    vision: VisionSpec


class Section:
    """One object of a ``config.json``; every complaint names the key's full path."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self.values = values
        self.path = path

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def where(self, key: str) -> str:
        """The path of ``key`` for a message."""
        return f"{self.path}{key}"

    def get(self, key: str, kind: type[T], default: T = _MISSING) -> T:
        """The value of ``key``, of type ``kind``; ConfigError if it is missing or of another."""
        value = self.values.get(key)
        if value is None:
            if default is _MISSING:
                raise ConfigError(f"{self.where(key)}: missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{self.where(key)}: {value!r} is not of type {kind.__name__}")
        return value

    def count(self, key: str, default: int = _MISSING) -> int:
        """A whole number of at least 1."""
        value = self.get(key, int, default)
        if value < 1:
            raise ConfigError(f"{self.where(key)}: {value} must be at least 1")
        return value

    def one_of(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        """A word that is supported."""
        value = self.get(key, str, default)
        if value not in allowed:
            raise ConfigError(f"{self.where(key)}: {value!r} is not supported ({allowed})")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(type(number) is int for number in value):
            raise ConfigError(f"{self.where(key)}: {value!r} is not a list of integers")
        return tuple(value)

    def section(self, key: str) -> "Section":
        """The object under ``key``."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise ConfigError(f"{self.where(key)}: missing or not an object")
        return Section(value, f"{self.where(key)}.")


def read(folder: Path) -> Section:
    """The ``config.json`` of ``folder``. Raises ConfigError if there is none."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"model.path: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"model.path: {path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"model.path: {path}: not a JSON object")
    return Section(values, "config.json: ")


def text_section(root: Section) -> Section:
    """Where the language model's keys are: nested, or the root itself in the flat layout."""
    return root.section("text_config") if "text_config" in root else root


def read_text(root: Section) -> TextSpec:
    """The language model of a Qwen-like configuration, nested or flat."""
    text = text_section(root)
    if text.get("use_sliding_window", bool, False):
        raise ConfigError(f"{text.where('use_sliding_window')}: not supported")
    text.one_of("hidden_act", ("silu",), "silu")
    hidden, heads = text.count("hidden_size"), text.count("num_attention_heads")
    kv_heads = text.count("num_key_value_heads", heads)
    head_dim = text.count("head_dim", hidden // heads)
    if heads % kv_heads or head_dim % 2 or head_dim * heads != hidden:
        raise ConfigError(
            f"{text.where('num_attention_heads')}: {heads} heads, {kv_heads} KV heads and a hidden"
            f" size of {hidden} do not fit together"
        )
    theta, sections = _rope(text, head_dim)
    is_tied = root.get("tie_word_embeddings", bool, False) or text.get(
        "tie_word_embeddings", bool, False
    )
    return TextSpec(
        vocab_size=text.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=text.count("intermediate_size"),
        num_layers=text.count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=text.get("rms_norm_eps", float, 1e-6),
        rope_theta=theta,
        rope_sections=sections,
        is_tied=is_tied,
    )


def _rope(text: Section, head_dim: int) -> tuple[float, tuple[int, ...]]:
    """Base and sections, from ``rope_parameters`` or ``rope_scaling``, ``rope_type`` or ``type``:
    the published files say ``mrope``, those written by Transformers 4.50 and later ``default``."""
    key = "rope_parameters" if "rope_parameters" in text else "rope_scaling"
    rope = text.section(key)
    rope.one_of("rope_type" if "rope_type" in rope else "type", ("mrope", "default"), "mrope")
    sections = rope.integers("mrope_section")
    if len(sections) != 3 or min(sections) < 0 or sum(sections) != head_dim // 2:
        raise ConfigError(
            f"{rope.where('mrope_section')}: {sections} must be three numbers whose sum is half"
            f" the head's size, {head_dim // 2}"
        )
    default = text.get("rope_theta", float, 1e6)
    return rope.get("rope_theta", float, default), sections


def read_patches(vision: Section) -> PatchFields:
    """The fields of a ``VisionSpec`` that every Qwen-like tower names alike. The published files
    say ``in_chans``, those written by Transformers ``in_channels``; theirs wins if both are there,
    as it does in Transformers."""
    theta = 10000.0
    if "rope_parameters" in vision:
        theta = vision.section("rope_parameters").get("rope_theta", float, theta)
    channels = "in_channels" if "in_channels" in vision else "in_chans"
    return {
        "depth": vision.count("depth"),
        "num_heads": vision.count("num_heads"),
        "in_channels": vision.count(channels, 3),
        "patch_size": vision.count("patch_size", 14),
        "temporal_patch_size": vision.count("temporal_patch_size", 2),
        "merge_size": vision.count("spatial_merge_size", 2),
        "rope_theta": theta,
    }
