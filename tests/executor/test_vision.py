import random

import numpy as np
import pytest
import torch

from tests.executor.driver import Driver, executors, inputs_of, scene
from triptych.core.errors import ConfigError, InvariantBroken
from triptych.core.ids import BlockId, JobId
from triptych.core.lifecycle import Stage
from triptych.core.plan import SLICES, VisionPlan, VisionTask
from triptych.executor.build import Executors


def test_patches_are_the_processors(whole: Executors):
    one = scene(random.Random(0), [1, (3, 5), 1, (1, 1), 1, (6, 2)], 690)
    model = whole.vision._model
    own = torch.cat([model.patches(pixels) for pixels in one.pixels])
    assert (own - inputs_of(one)["pixel_values"]).abs().max() < 1e-5


def test_a_picture_does_not_see_its_neighbours(whole: Executors):
    one = scene(random.Random(1), [1, (3, 5), 1, (9, 9), 1, (3, 5)], 690)
    driver = Driver(whole)
    together = driver.rows(driver.add(one))
    alone = []
    for item, pixels in zip(one.prompt.items, one.pixels, strict=True):
        blocks = tuple(driver.free_rows.pop() for _ in range(-(-item.num_tokens // 7)))
        whole.vision.execute(VisionPlan((VisionTask(JobId("x"), item, pixels, blocks),)))
        alone.append(whole.embeddings.tensor[list(blocks)].flatten(0, 1)[: item.num_tokens])
    assert (together - torch.cat(alone)).abs().max() < 1e-4


def test_nothing_behind_the_rows_is_written():
    made = executors("oracle")
    one = scene(random.Random(1), [1, (2, 5)], 257)
    made.embeddings.tensor.fill_(255)
    Driver(made).add(one)
    assert (made.embeddings.tensor == 255).all(dim=-1).sum() == 80 * 7 - 10
    made.close()


def test_an_empty_plan_is_nothing(whole: Executors):
    assert whole.vision.execute(VisionPlan(())).seconds < 1


@pytest.mark.parametrize("wrong", ["size", "dtype", "blocks", "tokens", "type"])
def test_what_does_not_fit_is_a_bug(wrong: str):
    made = executors("oracle")
    one = scene(random.Random(1), [(2, 5)], 257)
    item, pixels, blocks = one.prompt.items[0], one.pixels[0], (BlockId(1), BlockId(2))
    if wrong == "size":
        pixels = pixels[:-1]
    elif wrong == "dtype":
        pixels = pixels.astype(np.float32)
    elif wrong == "type":
        pixels = pixels.tobytes()
    elif wrong == "blocks":
        blocks = blocks[:1]
    else:
        item = type(item)(item.key, 0, 9, item.grid)
    with pytest.raises(InvariantBroken):
        made.vision.execute(VisionPlan((VisionTask(JobId("x"), item, pixels, blocks),)))
    made.close()


@pytest.mark.gpu
def test_pictures_do_not_wait_for_the_language_models_stream(folders):
    made = executors(folders["qwen2_5_vl"], device="cuda")
    driver, one = Driver(made), scene(random.Random(1), [1, (3, 5), 1], 690)
    wanted = driver.rows(driver.add(one))
    torch.cuda._sleep(2_000_000_000)  # about a second, in the default stream
    sequence = driver.add(one)
    assert not torch.cuda.default_stream().query(), "the default stream was waited for"
    assert driver.rows(sequence).equal(wanted)
    made.close()


@pytest.mark.gpu
def test_a_share_of_the_gpu_gives_the_same_rows(folders):
    one, rows = scene(random.Random(1), [1, (9, 11), 1], 690), []
    for share in (1.0, 0.25):
        made = executors(folders["qwen2_5_vl"], device="cuda", vision_share=share)
        driver = Driver(made)
        rows.append(driver.rows(driver.add(one)))
        made.close()
    assert (rows[0].float() - rows[1].float()).abs().max() < 1e-2


@pytest.mark.parametrize("more", [{"vision_share": 0.5}, {"split": "sis"}])
def test_a_part_of_a_cpu_is_refused(folders, more):
    with pytest.raises(ConfigError, match=r"model\.vision_share, engine\.split: only a GPU"):
        executors(folders["qwen2_5_vl"], **more)


def test_an_encoder_alone_has_nothing_to_divide(folders):
    executors(folders["qwen2_5_vl"], frozenset({Stage.ENCODE}), split="sis").close()


@pytest.mark.gpu
def test_a_step_on_a_slice_gives_the_same_rows(folders):
    one, rows = scene(random.Random(1), [1, (9, 11), 1], 690), []
    made = executors(folders["qwen2_5_vl"], device="cuda", split="sis")
    driver = Driver(made)
    for share in (1.0, *SLICES):
        driver.share = share
        rows.append(driver.rows(driver.add(one)))
    made.close()
    assert all((each.float() - rows[0].float()).abs().max() < 1e-2 for each in rows)
