import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.executor.driver import Driver, executors, expected, scene
from triptych.core.config import CacheConfig, Config, ModelConfig
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Stage
from triptych.executor.build import build, resolve
from triptych.executor.models.weights import published_name

E, P, D = Stage.ENCODE, Stage.PREFILL, Stage.DECODE
ROLES = [{E}, {P}, {D}, {E, P}, {E, D}, {P, D}, {E, P, D}]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: "".join(sorted(s.letter for s in role)))
@pytest.mark.parametrize("path", ["oracle", "odd"])
def test_a_role_holds_only_its_parts(folders, path: str, role: set[Stage]):
    whole = executors(folders.get(path, path))
    made = executors(folders.get(path, path), frozenset(role))
    assert (made.vision is not None) == (E in role)
    assert (made.language is not None) == bool(role & {P, D})
    assert (made.embeddings is not None) == bool(role & {E, P})
    if made.language is not None:
        assert made.language.embeddings is (made.embeddings if P in role else None)
        assert made.language.memory.layout == whole.language.memory.layout
    if made.vision is not None:
        assert made.vision.embeddings is made.embeddings
        assert made.embeddings.layout == whole.embeddings.layout
    assert (made.memory_bytes["kv"] > 0) == bool(role & {P, D})
    assert (made.memory_bytes["embedding"] > 0) == bool(role & {E, P})
    if path != "oracle":
        vision = executors(folders[path], frozenset({E})).memory_bytes["weights"]
        language = executors(folders[path], frozenset({D})).memory_bytes["weights"]
        assert vision + language == whole.memory_bytes["weights"]
        held = vision * (E in role) + language * bool(role & {P, D})
        assert made.memory_bytes["weights"] == held


def test_parts_that_are_not_wanted_are_not_even_there(folders, tmp_path: Path):
    """An encode instance starts from a folder whose language tensors are cut out, and the other
    way round."""
    for part, role in (("visual.", {E}), ("", {D})):
        folder = shutil.copytree(folders["qwen2_5_vl"], tmp_path / f"only-{part}")
        tensors = load_file(folder / "model.safetensors")
        kept = {n: t for n, t in tensors.items() if n.startswith("visual.") == bool(part)}
        save_file(kept, folder / "model.safetensors")
        made = executors(folder, frozenset(role))
        assert made.memory_bytes["weights"] == sum(tensor.nbytes for tensor in kept.values())
        with pytest.raises(ConfigError, match="missing tensor"):
            executors(folder)


def test_both_names_of_tensors(folders, tmp_path: Path):
    """The published names and those of Transformers' own modules give the same tokens."""
    folder = shutil.copytree(folders["qwen2_5_vl"], tmp_path / "renamed")
    tensors = load_file(folder / "model.safetensors")
    inner = {
        f"model.{name}" if name.startswith("visual.") else
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in tensors.items()
    }  # fmt: skip
    assert {published_name(name) for name in inner} == tensors.keys()
    save_file(inner, folder / "model.safetensors")
    one = scene(random.Random(1), [4, (3, 3), 5], 690)
    driver = Driver(executors(folder))
    assert driver.generate(driver.add(one), 7, 6) == expected(folders["qwen2_5_vl"], one, 6)[0]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("visual.blocks.1.attn.qkv.bias", "missing", "missing tensor visual.blocks.1.attn.qkv.b"),
        ("model.layers.2.mlp.up_proj.weight", "missing", "missing tensor model.layers.2.mlp.up_p"),
        ("model.norm.weight", "shape", r"model.norm.weight has the shape \(3,\), not \(96,\)"),
        ("visual.blocks.3.norm1.weight", "extra", "unexpected tensor visual.blocks.3.norm1.wei"),
        ("model.layers.3.mlp.up_proj.weight", "extra", "unexpected tensor model.layers.3.mlp"),
        ("audio.embed", "extra", "unexpected tensor audio.embed"),
    ],
)
def test_wrong_tensors_are_named(folders, tmp_path: Path, name: str, change: str, message: str):
    folder = shutil.copytree(folders["qwen2_5_vl"], tmp_path / "wrong")
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        executors(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type: 'llama' is not one of"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: not supported"),
        ({"use_sliding_window": True}, "use_sliding_window: not supported"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
        ({"num_attention_heads": 5}, "num_attention_heads: 5 heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0 must be at least 1"),
        ({"hidden_size": "96"}, "hidden_size: '96' is not of type int"),
        ({"intermediate_size": None}, "intermediate_size: missing"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.type: 'yarn' is not supported"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "mrope_section"),
        ({"rope_scaling": None}, "rope_scaling: missing"),
        ({"vision_config": None}, "vision_config: missing"),
        ({"vision_config.window_size": 20}, "window_size: smaller than one"),
        ({"vision_config.out_hidden_size": 64}, "out_hidden_size: 64 is not the decoder's 96"),
        ({"vision_config.hidden_act": "relu"}, "vision_config.hidden_act: 'relu'"),
        ({"vision_config.fullatt_block_indexes": 3}, "fullatt_block_indexes: 3 is not a list"),
        ({"vision_config.patch_size": 16}, "preprocessor's patch_size 14 is not .* 16"),
    ],
)
def test_wrong_configurations_are_named(folders, tmp_path: Path, change, message: str):
    folder = shutil.copytree(folders["qwen2_5_vl"], tmp_path / "wrong")
    values = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = value
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message):
        executors(folder)


def test_broken_folders(folders, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"model\.path"):
        executors(tmp_path / "nowhere")
    folder = shutil.copytree(folders["odd"], tmp_path / "odd")
    next(folder.glob("*-00003-*")).unlink()
    with pytest.raises(ConfigError, match=r"model-00003"):
        executors(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../../etc/passwd"}}))
    with pytest.raises(ConfigError, match="files of its own folder"):
        executors(folder)
    index.write_text("{}")
    with pytest.raises(ConfigError, match="no weight_map"):
        executors(folder)


def test_devices_and_dtypes():
    auto = resolve(Config())
    assert auto == (("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32"))
    model = ModelConfig(device="cpu", dtype="bfloat16")
    assert resolve(Config(model=model)) == ("cpu", "bfloat16")
    for device in ("abacus", "meta", "cuda:99" if not torch.cuda.is_available() else "xpu"):
        with pytest.raises(ConfigError, match=r"model\.device"):
            resolve(Config(model=ModelConfig(device=device)))


def test_too_many_blocks_are_refused():
    config = Config(cache=CacheConfig(kv_blocks=2**50))
    with pytest.raises(ConfigError, match=r"cache\.kv_blocks"):
        build("oracle", config, frozenset({D}), "x")


@pytest.mark.parametrize(
    ("kernels", "num_ranks", "frees_lock"),
    [("native", 1, True), ("native", 2, False), ("plain", 1, False)],
)
def test_recorded_steps_leave_the_interpreter_alone(folders, kernels, num_ranks, frees_lock):
    made = executors(folders["wide"], frozenset({D}), kernels=kernels, num_ranks=num_ranks)
    assert made.language.frees_lock is frees_lock
    assert (made.language._model._graphs is not None) is frees_lock, "recorded, or not"
    made.close()
