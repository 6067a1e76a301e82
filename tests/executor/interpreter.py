"""Triton 3.6's interpreter, made to run our kernels and sooner. Nothing without Triton.

``TRITON_INTERPRET`` is set by the root's conftest, before anything imports Triton.
"""

from importlib.util import find_spec

import torch


def repair() -> None:
    """Two things that it lacks: loop bounds under numpy 2.4, which makes no integer of an array of
    one; products of bfloat16, whose bits it multiplies as if they were integers."""
    import triton.language as tl
    from triton.runtime import interpreter

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


def hasten() -> None:
    """It prepares the language anew for every call between device functions,
    ten milliseconds each. Once a launch is enough for those that see the same modules."""
    import triton.language as tl
    from triton.runtime import interpreter

    prepared: set[frozenset[str]] = set()
    launch = interpreter.GridExecutor.__call__

    def launch_afresh(self, *arguments, **named):
        prepared.clear()
        return launch(self, *arguments, **named)

    def call(self, *arguments, **named):
        seen = self.__dict__.get("seen")
        if seen is None:
            names = self.fn.__globals__.items()
            seen = frozenset(name for name, value in names if value is tl or value is tl.core)
            self.seen = seen
        if seen not in prepared:
            prepared.add(seen)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*arguments, **named)

    interpreter.GridExecutor.__call__ = launch_afresh
    interpreter.InterpretedFunction.__call__ = call


if not torch.cuda.is_available() and find_spec("triton") is not None:
    repair()
    hasten()
