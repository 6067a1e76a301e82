"""Which module knows which ``model_type``: the only place that branches on a model's name."""

from triptych.core.errors import ConfigError
from triptych.executor.models import qwen2_5_vl, qwen2_vl
from triptych.executor.models.config import ModelSpec, Section

_FAMILIES = {
    "qwen2_vl": qwen2_vl.read_spec,
    "qwen2_5_vl": qwen2_5_vl.read_spec,
}


def read_spec(root: Section) -> ModelSpec:
    """The model that a ``config.json`` describes; ConfigError if no family here knows it."""
    model_type = root.get("model_type", str)
    if model_type not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise ConfigError(f"{root.where('model_type')}: {model_type!r} is not one of {known}")
    if "quantization_config" in root:
        raise ConfigError(f"{root.where('quantization_config')}: not supported")
    return _FAMILIES[model_type](root)
