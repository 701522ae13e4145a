"""torch's parameters, gradients and state, as fastadam takes them. `fastadam.torch` is made of it."""

from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadam import Rows

STATE_TYPES = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}
COUNTERS = ("step", "mu_product")
ORDERS = {"axes", "fortran_order"}  # how codes lie, if not in C order


def number(value: Any) -> Any:
    """A hyper-parameter without tensors."""
    if isinstance(value, tuple | list):
        return value if type(value) is tuple and {*map(type, value)} == {float} else tuple(map(number, value))
    return value.item() if isinstance(value, Tensor) else value


def base(name: str) -> str:
    """What "exp_avg::codes" and the like are parts of."""
    return name.partition("::")[0]


def array_of(x: Tensor) -> Any:
    """The same memory."""
    if x.dtype is not torch.bfloat16:
        return x.detach().numpy()
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise ImportError("bfloat16 parameters need the package ml_dtypes: pip install ml_dtypes") from None
    return x.detach().view(torch.int16).numpy().view(bfloat16)


class Slot:
    """A parameter, its array, and its state as torch has it."""

    def __init__(self, p: Tensor) -> None:
        why = ""
        if p.device.type != "cpu":
            why = f"is on {p.device}; use torch's own class there, or move the model to the CPU before"
        elif p.layout is not torch.strided:
            why = f"has the layout {p.layout}; make it dense with to_dense(), or use torch's own class"
        elif p.is_complex():
            why = "is complex; keep torch.view_as_real(p) as the parameter, and use torch.view_as_complex in forward"
        elif p.dtype not in STATE_TYPES:
            why = f"is {p.dtype}; make it float32 and train under torch.autocast, or make it bfloat16"
        elif p.is_neg():
            why = "is a view that negates what it shows; make it with .resolve_neg()"
        elif not p.permute(sorted(range(p.dim()), key=p.stride, reverse=True)).is_contiguous():
            why = f"has gaps in memory, or elements that share it (strides {p.stride()}); make it with .contiguous()"
        if why:
            raise ValueError(f"fastadam cannot step this parameter of shape {tuple(p.shape)}: it {why}")
        self.tensor, self.array, self.pointer = p, array_of(p), p.data_ptr()
        self.shown: dict[str, Any] = {}

    def gradient(self) -> Any:
        """As `step` takes it; None if there is none."""
        grad = self.tensor.grad
        if grad is None:
            return None
        try:
            return grad.numpy()
        except (RuntimeError, TypeError):  # it is sparse, of bfloat16, negated, or part of a graph
            if grad.layout is torch.strided:
                return array_of(grad.resolve_neg())
        if grad.layout is torch.sparse_coo and grad.sparse_dim() == 1 and self.tensor.is_contiguous():
            return Rows(array_of(grad._indices()[0]), array_of(grad._values()))
        raise ValueError(
            f"a gradient of shape {tuple(grad.shape)} has the layout {grad.layout}; only rows of contiguous parameters "
            "may be sparse (COO with one sparse axis); use p.grad = p.grad.to_dense()"
        )

    def show(self, state: Mapping[str, Any], counters: Mapping[str, Tensor]) -> None:
        """Note fastadam's state under torch's names, in torch's form. What torch does not have keeps its own."""
        for name in sorted(state, key=lambda name: base(name) == "grad_avg"):  # which torch has last
            value = torch.from_numpy(state[name]) if isinstance(state[name], np.ndarray) else state[name]
            if name.endswith("::codes") and base(name) + "::scale" not in state:
                name, value = base(name), value.view(torch.bfloat16).as_strided(self.tensor.shape, self.tensor.stride())
            self.shown[name] = counters.get(name, value)

    def saved(self, entry: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
        """torch's state in the form that fastadam loads. What is missing is fresh; what is not ours is left out."""
        ours, saved = {*map(base, fresh)} - ORDERS, dict[str, Any]()
        for name, value in entry.items():
            if name in COUNTERS:
                value = float(value)
            elif name in ours and isinstance(value, Tensor):
                value = value.to(STATE_TYPES[self.tensor.dtype])
            if base(name) == "master" and value.dtype not in (torch.int16, torch.int8):
                continue  # torch's own class has cast it
            if base(name) in ours | ORDERS and value is not None:
                saved[name] = array_of(value) if isinstance(value, Tensor) else value
        found = ours.intersection(map(base, saved))
        if found and "step" not in found:  # torch's SGD does not count; what matters is whether there was a step
            saved["step"] = 1
        missing = ours - found - {"step"} if found else ()
        return saved | {name: copy(fresh[name]) for name in fresh if base(name) in missing}
