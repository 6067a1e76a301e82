"""Kernels against their twins: on a GPU, or else step by step in Triton's interpreter."""

import os
from importlib.util import find_spec

import pytest
import torch

IS_INTERPRETED = not torch.cuda.is_available()
if IS_INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported


def repair_interpreter() -> None:
    """Three things that Triton 3.6's interpreter lacks: its library's own jitted functions if torch
    imported it before the variable was set; loop bounds under numpy 2.4, which makes no integer of
    an array of one; products of bfloat16, whose bits it multiplies as if they were integers."""
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    for module in (tl.standard, tl):
        for name, value in vars(module).copy().items():
            if isinstance(value, JITFunction):
                made = getattr(tl.standard, name, value)
                if isinstance(made, JITFunction):
                    made = interpreter.InterpretedFunction(value.fn)
                setattr(module, name, made)
    patch = interpreter._patch_lang_tensor

    def patch_more(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_more
    builder = interpreter.InterpreterBuilder
    dot = builder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        wide = interpreter._convert_float(handle.data, tl.bfloat16, tl.float32, None)
        return interpreter.TensorHandle(wide.view("float32"), tl.float32)

    builder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)


if IS_INTERPRETED and find_spec("triton") is not None:
    repair_interpreter()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    pytest.importorskip("triton", reason="no Triton for this platform")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
