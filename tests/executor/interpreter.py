"""What Triton 3.6's interpreter lacks on this side of numpy 2.4. Without Triton, nothing is done."""

from importlib.util import find_spec

import torch


def repair() -> None:
    """Loop bounds: numpy makes no integer of an array of one any more."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_more(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_more


if not torch.cuda.is_available() and find_spec("triton") is not None:
    repair()
