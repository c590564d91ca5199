"""When an op may run past torch's dispatcher, which costs more than a small product."""

import torch
from torch import Tensor
from torch.nn import Parameter

# Looked up once: this runs before every op.
_is_compiling = torch.compiler.is_compiling
_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_tracing, _transform = torch._C._get_tracing_state, torch._C._functorch.peek_interpreter_stack
_profiling, _builds_graph = torch._C._autograd._profiler_enabled, torch.is_grad_enabled
_NUMBERS = frozenset((int, bool, type(None), list, tuple))


def is_watched() -> object:
    """Truth: something in this thread compiles, exports, traces or transforms, and so has to see every operation."""
    return _is_compiling() or _modes() or _function_modes() or _tracing() or _transform()


def is_direct(arguments: tuple) -> bool:
    """Whether these are plain CPU tensors that need no gradient, and nothing in this thread watches or profiles."""
    if is_watched() or _profiling():
        return False
    graph = _builds_graph()
    for x in arguments:
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            if not x.is_cpu or x.is_neg() or (graph and x.requires_grad):
                return False
        elif kind not in _NUMBERS:
            return False
    return True
