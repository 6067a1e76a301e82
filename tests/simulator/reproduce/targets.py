"""Small targets for tests."""

from simulator.reproduce.target import read

FIXED = """
number = 1
title = "Two instances are faster than one"
source = "Nobody, nowhere"
claim = "They are."
setting = "Small."
[scenario]
costs = "h200:qwen2.5-vl-7b"
workload = "synthetic:fixed,images=0,text=512,output=4"
rates = [4]
duration_s = 5
set = ["router.placement=least_loaded"]
systems = [{ name = "one", topology = "EPD1" }, { name = "two", topology = "EPD2" }]
"""


def target(tmp_path, checks, head=FIXED):
    path = tmp_path / "01-test.toml"
    path.write_text(head + checks)
    return path, read(path)


def ratio(high, **more):
    words = {"says": "TTFT", "measure": "ratio", "figure": "ttft.mean", "of": "two", "to": "one"}
    lines = [f'{key} = "{value}"' for key, value in (words | more).items()]
    return "\n[[checks]]\n" + "\n".join(lines) + f"\nhigh = {high}\n"
