"""Configuration of the model that is served, and of what it is computed with."""

from typing import Annotated

import msgspec
from msgspec import Meta

from triptych.core.config_kinds import Count, Gap, Share


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model is served."""

    path: str = "examples/demo_model"
    """Folder in the Hugging Face layout, or ``oracle``."""
    name: str = ""
    """Name at the doors; empty means the folder's name."""
    dtype: str = "auto"
    """``float32``, ``bfloat16`` or ``auto`` (float32 on a CPU, bfloat16 on a GPU)."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:N`` or ``auto``."""
    threads: Count = 1
    """Arithmetic threads of each instance on a CPU, and of each rank that is a process. Of native
    kernels the most: others than a step's own help with large operations where a core is idle."""
    tensor_parallel: Count = 1
    """Ranks among which the language model's heads are divided; KV blocks have a run for each."""
    parallel: str = "inside"
    """Where these ranks are computed: ``inside``, one after the other in the instance's process,
    which changes the shape of KV and gains no speed; ``processes``, each in its own, side by side
    over one memory (on a CPU only); or ``devices``, each in its own and with memory of its own, on
    neighbouring GPUs, joined by NCCL (on a CPU by gloo: a test bed)."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 0
    """Added to the niceness of an instance's process, unless it is the server's own: it yields."""
    decode_gap_s: Gap = 0.0
    """On a CPU: least time from the beginning of one step of several decodes to that of the next
    while some thread of the machine waits for a core. Other instances' pictures and prompts get it
    first, and more sequences decode in a step: first tokens come sooner, the others later. For
    instances that only decode, on machines that are the server's own."""
    vision_share: Share = 1.0
    """Part of a GPU's multiprocessors on which pictures are encoded beside the language model."""
    kernels: str = "auto"
    """What layers are computed with: ``triton`` (our kernels), ``native`` (our C for float32,
    compiled at the first start), ``plain`` (PyTorch's own) or ``auto``: kernels on a
    GPU where Triton is installed, native on a CPU with a C compiler, else plain."""
