"""Lets megatron-core 0.16 train on CPU and gloo; does nothing where CUDA is available.

megatron-core names `torch.cuda` and `device="cuda"` outright. `apply` answers those calls with
the CPU's equivalent and must run before `megatron.core` is imported; `apply_after_import` mends
four of its modules and must run after.
"""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._device import _device_constructors

_CPU = torch.device("cpu")
_COMPILE = torch.compile
_FACTORIES = (
    *("arange", "as_tensor", "empty", "empty_like", "eye", "full", "full_like", "linspace"),
    *("ones", "ones_like", "rand", "randint", "randn", "tensor", "zeros", "zeros_like"),
)


class _Stream:
    """Stands for a CUDA stream or event: on a CPU a call that returned has happened."""

    device = _CPU
    cuda_stream = 0

    def __init__(self, *_args: Any, **_options: Any) -> None: ...
    def wait(self, *_args: Any) -> None: ...
    def wait_stream(self, *_args: Any) -> None: ...
    def wait_event(self, *_args: Any) -> None: ...
    def synchronize(self) -> None: ...
    def record(self, *_args: Any) -> "_Stream":
        return self

    def record_event(self, *_args: Any) -> "_Stream":
        return self

    def query(self) -> bool:
        return True

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_error: Any) -> None: ...


def apply() -> None:
    """Patch torch; call before the first import of `megatron.core`."""
    if torch.cuda.is_available():
        return
    _patch_compiler()
    _patch_device_calls()
    _patch_streams()
    _patch_random_state()
    _patch_factories()
    _patch_tensor_methods()


def apply_after_import() -> None:
    """Patch megatron-core itself; call after `megatron.core` can be imported."""
    if torch.cuda.is_available():
        return
    torch.compile = _COMPILE
    import megatron.core.tensor_parallel.random as megatron_random
    import megatron.core.transformer.moe.moe_utils as moe_utils
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    megatron_random._get_cuda_rng_state = lambda *_a, **_k: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *_a, **_k: torch.set_rng_state(state)
    logging.getLogger(megatron_random.__name__).setLevel(logging.ERROR)
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = (
            None  # named without Transformer Engine: NameError in 0.16.1
        )
    for name in ("new_group", "new_subgroups_by_enumeration"):
        setattr(dist, name, _gloo_for_nccl(getattr(dist, name)))
    _keep_step_when_loading(DistributedOptimizer)


def _patch_compiler() -> None:
    """While megatron-core is imported, compile nothing.

    It wraps its fused operations, which our engine leaves off, with `torch.compile`; that alone
    imports the compiler, 40% of what a rank would spend on its imports.
    """

    def compile_nothing(function: Any = None, **_options: Any) -> Any:
        return function if function is not None else lambda decorated: decorated

    setattr(torch, "compile", compile_nothing)  # noqa: B010  # mypy sees overloads there


def _patch_device_calls() -> None:
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    cuda.device_count = lambda: 0
    cuda.get_device_capability = lambda *_a, **_k: (0, 0)
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *_a, **_k: None)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        setattr(cuda, name, lambda *_a, **_k: 0)


def _patch_streams() -> None:
    cuda: Any = torch.cuda
    stream = _Stream()
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = cuda.default_stream = lambda *_a, **_k: stream
    cuda.stream = lambda _stream: contextlib.nullcontext()
    cuda.set_stream = lambda _stream: None
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *_a, **_k: None


def _patch_random_state() -> None:
    cuda: Any = torch.cuda
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_a, **_k: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_a, **_k: torch.set_rng_state(state)


def _patch_factories() -> None:
    # torch remembers its factories at the first `with torch.device(...)`: let it be these.
    _device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _patch_tensor_methods() -> None:
    tensor: Any = torch.Tensor
    for name in ("cuda", "pin_memory"):
        setattr(tensor, name, lambda self, *_a, **_k: self)
    tensor.record_stream = lambda _self, *_a, **_k: None
    torch.nn.Module.cuda = lambda self, *_a, **_k: self  # type: ignore[method-assign]
    tensor.to = _to_on_cpu(tensor.to)
    tensor.type = _type_as_cuda(tensor.type)


def _is_cuda(device: Any) -> bool:
    return (isinstance(device, torch.device) and device.type == "cuda") or (
        isinstance(device, str) and device.startswith("cuda")
    )


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    def build(*args: Any, **options: Any) -> Any:
        if _is_cuda(options.get("device")):
            options["device"] = _CPU
        options.pop("pin_memory", None)
        return factory(*args, **options)

    return functools.update_wrapper(build, factory)


def _to_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    def to(self: torch.Tensor, *args: Any, **options: Any) -> Any:
        if _is_cuda(options.get("device")):
            options["device"] = _CPU
        return original(self, *(_CPU if _is_cuda(arg) else arg for arg in args), **options)

    return to


def _type_as_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    """megatron-core's optimizers compare `param.type()` with `torch.cuda.*Tensor`."""

    def tensor_type(self: torch.Tensor, *args: Any, **options: Any) -> Any:
        answer = original(self, *args, **options)
        if isinstance(answer, str) and not answer.startswith("torch.cuda"):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    return tensor_type


def _gloo_for_nccl(original: Callable[..., Any]) -> Callable[..., Any]:
    def new_group(*args: Any, **options: Any) -> Any:
        if options.get("backend") == "nccl":
            options["backend"] = "gloo"
        return original(*args, **options)

    return functools.update_wrapper(new_group, original)


def _keep_step_when_loading(optimizer_class: Any) -> None:
    """With torch's AdamW the state's `step` is not in what 0.16.1 loads: KeyError."""
    original = optimizer_class._set_main_param_and_optimizer_states

    def set_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> Any:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        if "step" in state:
            tensors = {"step": state["step"], **tensors}
        return original(self, model_param, tensors)

    optimizer_class._set_main_param_and_optimizer_states = set_states
