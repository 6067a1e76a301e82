"""A workload is what was typed, the same in every process, or an error that names the field."""

import hashlib
import os
import subprocess
import sys

import msgspec
import pytest

from bench.sources.registry import FILES, KINDS, workload
from bench.sources.shapes import amount
from tests.bench.sources.test_servegen import folder as servegen_folder  # noqa: F401
from tests.bench.sources.traces import ROOT
from triptych.core.errors import ConfigError

SYNTHETIC = [f"synthetic:{kind}" for kind in KINDS]


def test_options_reach_the_source():
    load = workload("synthetic:image_heavy,images=6,arrivals=gamma,cv=2")
    assert load.name == "synthetic:image_heavy,images=6,arrivals=gamma,cv=2"
    assert {len(one.images) for one in load.arrivals(10.0, 20.0, 1)} == {6}


def test_labels_are_for_every_source():
    load = workload("synthetic:fixed,slo=strict,priority=2,images=0")
    found = list(load.arrivals(10.0, 5.0, 1))
    assert {(one.slo, one.priority, len(one.images)) for one in found} == {("strict", 2, 0)}
    assert load.name == "synthetic:fixed,images=0,slo=strict,priority=2"
    assert {one.slo for one in workload("synthetic:video,priority=1").arrivals(5.0, 5.0, 1)} == {
        "video"
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is none of servegen, mooncake, azure, azure_lmm, ledger, synthetic"),
        ("sharegpt:x", "'sharegpt' is none of servegen"),
        ("servegen", "servegen:PATH"),
        ("mooncake:,start_s=1", "mooncake:PATH"),
        ("azure:x,path=y", "azure:PATH"),
        ("synthetic", "synthetic: is none of servegen, image_heavy"),
        ("synthetic:heavy", "synthetic:heavy is none of servegen, image_heavy"),
        ("synthetic:fixed,images", "'images' is not option=value"),
        ("synthetic:fixed,images=1,images=2", "'images=2'"),
        ("synthetic:fixed,image=1", "image: no such option; known: images, tokens, size"),
        ("synthetic:fixed,shape_=1", "shape_: no such option"),
        ("synthetic:fixed,turns=3", "turns: no such option"),
        ("synthetic:closed_loop,rate=3", "rate: no such option"),
        ("synthetic:fixed,rate=0", "rate: expected `float` > 0"),
        ("synthetic:fixed,rate=fast", "rate: expected `float`"),
        ("synthetic:fixed,repeat=1.5", "repeat: expected `float` <= 1"),
        ("synthetic:fixed,batch=0", "batch: expected `int` >= 1"),
        ("synthetic:fixed,coupling=tight", "coupling: invalid enum value 'tight'"),
        ("synthetic:fixed,arrivals=normal", "arrivals: invalid enum value 'normal'"),
        ("synthetic:fixed,cv=2", "cv: not an option of poisson"),
        ("synthetic:fixed,images=many", "images: 'many' is not like 7, 0.3, 4-8 or ~5"),
        ("synthetic:fixed,size=100x100", "size: '100x100' is not like 4032x3024, multiples of 28"),
        ("synthetic:fixed,profile=fast", "profile: 'fast' is not like 0:1/300:4"),
        ("synthetic:fixed,profile=5:1", "rates: steps begin at 0"),
        ("synthetic:fixed,slo=soon", "slo: 'soon' is none of interactive"),
        ("synthetic:fixed,priority=high", "priority: expected `int`"),
        ("synthetic:multi_turn,turns=0", "turns: at least one"),
        ("synthetic:multi_turn,phase_s=3", "phase_s: multi_turn has neither"),
        ("synthetic:closed_loop,clients=0", "clients: expected `int` >= 1"),
        ("servegen:x,coupling=tight", "coupling: invalid enum value"),
        ("servegen:x,start_s=90000", "start_s: expected `float` < 86400"),
        ("servegen:nowhere", "servegen: no chunk"),
        ("mooncake:nowhere", "mooncake: "),
        ("azure:nowhere", "azure: "),
        ("azure_lmm:nowhere", "azure_lmm: "),
        ("azure_lmm:nowhere,cv=2", "cv: not an option of poisson"),
        ("ledger:nowhere", "ledger: "),
    ],
)
def test_what_means_nothing_is_refused(text, words):
    with pytest.raises(ConfigError) as caught:
        workload(text)
    assert words in f"{caught.value}"


def test_a_name_does_not_show_where_files_lie(servegen_folder):  # noqa: F811
    text = f"servegen:{servegen_folder},coupling=comonotone,slo=batch"
    assert workload(text).name == "servegen,coupling=comonotone,slo=batch"
    assert set(FILES) == {"servegen", "mooncake", "azure", "azure_lmm", "ledger"}


def digest(texts):
    found = hashlib.sha256()
    for text in texts:
        load = workload(text)
        rate = None if "closed_loop" in text else 4.0
        found.update(msgspec.json.encode(list(load.arrivals(rate, 30.0, 7))))
    return found.hexdigest()


def test_equal_arguments_give_equal_requests_in_every_process(servegen_folder):  # noqa: F811
    """Byte for byte, whatever the hash seed."""
    texts = [*SYNTHETIC, f"servegen:{servegen_folder},start_s=43100,repeat=0.3"]
    script = f"from tests.bench.sources.test_registry import digest; print(digest({texts!r}))"
    seen = {digest(texts)}
    for seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}"},
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        seen.add(done.stdout.strip())
    assert len(seen) == 1


def test_amounts_have_one_spelling_in_all_sources():
    assert amount("4-8", "images").mean == 6
