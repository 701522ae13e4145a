"""torch's optimizers for the CPU, computed by fastadam. In a training script only the import changes.

    from fastadam.torch import AdamW
    opt = AdamW(model.parameters(), lr=1e-3, max_norm=1.0)

Each class is a subclass of torch's class of that name. Groups, hooks and state dicts are torch's own code, and torch's
`param_groups` and `state` are what counts. The tensors in `state` are views of the arrays of a fastadam optimizer. If a
step finds others there, or parameters elsewhere in memory, it makes a new fastadam optimizer of what it finds.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastadam

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]

# What the classes take beside torch's arguments. `fastadam.Optimizer` documents it.
OPTIONS: dict[str, Any] = {"max_norm": None, "max_norm_each": None, "nonfinite": "propagate", "threads": None}
OPTIONS |= {"state_dtype": "float32", "seed": 0}
STATE_DEPENDS_ON = ("amsgrad", "centered", "momentum")
HYPER_PARAMETERS = {*STATE_DEPENDS_ON, "lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "maximize"}
HYPER_PARAMETERS |= {"dampening", "nesterov", "momentum_decay", "alpha", "lr_decay", "initial_accumulator_value"}
GRAIN = 32768  # elements for each thread at least, as in torch
STATE_TYPES = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}


def number(value: Any) -> Any:
    """A hyper-parameter without tensors."""
    if isinstance(value, tuple | list):
        return value if type(value) is tuple and {*map(type, value)} == {float} else tuple(map(number, value))
    return value.item() if isinstance(value, Tensor) else value


def base(name: str) -> str:
    """What "exp_avg::codes" and the like are parts of."""
    return name.partition("::")[0]


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Are these the same objects?"""
    return len(one) == len(other) and all(map(is_, one, other))


def array_of(x: Tensor, order: list[int] | None = None) -> np.ndarray:
    """The same memory, with its axes in this order."""
    x = x.detach() if order is None else x.detach().permute(order)
    if x.dtype is not torch.bfloat16:
        array: np.ndarray = x.resolve_conj().resolve_neg().numpy()
        return array
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise ImportError("bfloat16 parameters need the package ml_dtypes: pip install ml_dtypes") from None
    return x.view(torch.int16).numpy().view(bfloat16)


class Slot:
    """A parameter, as the array with its axes as they lie in memory: `order`, None if that is their own."""

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
        else:
            strides: tuple[int, ...] = p.stride()
            self.order = None if p.is_contiguous() else sorted(range(p.dim()), key=lambda axis: -strides[axis])
            self.array = array_of(p, self.order)
            if not self.array.flags.c_contiguous:
                why = f"has gaps in memory, or elements that share it (strides {strides}); make it with .contiguous()"
        if why:
            raise ValueError(f"fastadam cannot step this parameter of shape {tuple(p.shape)}: it {why}")
        self.tensor = p
        self.shown: dict[str, Any] = {}  # its state as torch has it

    def gradient(self) -> np.ndarray | fastadam.Rows | None:
        grad = self.tensor.grad
        if grad is None:
            return None
        try:
            array: np.ndarray = grad.numpy()
            return array if self.order is None else array.transpose(self.order)
        except (RuntimeError, TypeError):  # it is sparse, of bfloat16, or part of a graph
            if grad.layout is torch.strided:
                return array_of(grad, self.order)
        if grad.layout is torch.sparse_coo and grad.sparse_dim() == 1 and self.order is None:
            return fastadam.Rows(array_of(grad._indices()[0]), array_of(grad._values()))
        raise ValueError(
            f"a gradient of shape {tuple(grad.shape)} has the layout {grad.layout}; only rows of contiguous parameters "
            "may be sparse (COO with one sparse axis); use p.grad = p.grad.to_dense()"
        )

    def show(self, state: Mapping[str, Any], counters: Mapping[str, Tensor]) -> None:
        """Note the state that fastadam has as torch has it. What torch has not keeps its name and form."""
        for name in sorted(state, key=lambda name: base(name) == "grad_avg"):  # which torch has last
            value = state[name]
            if not isinstance(value, np.ndarray):
                self.shown[name] = counters.get(name, value)
            elif base(name) + "::scale" in state or base(name) == "master":
                self.shown[name] = torch.from_numpy(value)
            else:
                x = torch.from_numpy(value)
                x = x if base(name) == name else x.view(torch.bfloat16).view(self.array.shape)
                self.shown[base(name)] = x if self.order is None else x.permute(np.argsort(self.order).tolist())

    def saved(self, entry: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
        """What torch has as fastadam loads it. What is missing is fresh; what is somebody else's is left out."""
        ours, saved = {base(name) for name in fresh}, dict[str, Any]()
        for name, value in entry.items():
            if base(name) not in ours or value is None:
                continue
            if name in ("step", "mu_product"):
                saved[name] = float(value)
            elif name == base(name) and isinstance(value, Tensor):
                saved[name] = array_of(value.to(STATE_TYPES[self.tensor.dtype]), self.order)
            elif base(name) != "master" or value.dtype in (torch.int16, torch.int8):  # torch's own class casts it
                saved[name] = array_of(value) if isinstance(value, Tensor) else value
        found = {base(name) for name in saved}
        if found and "step" not in found:  # torch's SGD does not count; what matters is whether there was a step
            saved["step"] = 1
        return saved | {name: copy(fresh[name]) for name in fresh if found and base(name) not in {*found, "step"}}


def setting(name: str) -> Any:
    def write(optimizer: Any, value: Any) -> None:
        if optimizer._inner is None:
            optimizer._build()
        setattr(optimizer._inner, name, value)
        optimizer._options[name] = value

    return property(lambda optimizer: optimizer._options[name], write, doc="As in fastadam's own optimizers.")


class Adapter(torch.optim.Optimizer):
    """torch's class of this name. It takes torch's arguments, and OPTIONS by name. docs/torch.md says more."""

    _rule: Any  # fastadam's class
    _freed: set[Tensor]  # parameters whose gradients were freed since
    _inner: Any = None  # an optimizer of that class, made for what there was at the last step
    max_norm, max_norm_each, nonfinite, threads = map(setting, ("max_norm", "max_norm_each", "nonfinite", "threads"))
    grad_norm = property(
        lambda self: getattr(self._inner, "grad_norm", None), doc="Of the last step, before clipping by `max_norm`."
    )

    def __init_subclass__(cls, rule: Any = None) -> None:
        super().__init_subclass__()
        cls._rule = rule or cls._rule

    def __init__(self, params: Any, *args: Any, **named: Any) -> None:
        self._options = {name: named.pop(name, default) for name, default in OPTIONS.items()}
        super().__init__(params, *args, **named)
        self._build()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            for p in self.param_groups[-1]["params"]:
                Slot(p)
        except BaseException:
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._inner = None
        super().__setstate__(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but it copies the state, in the types that it has; and if it does not fit, nothing changes."""
        before, loaded = (self.state, self.param_groups), dict[str, Any]()

        def restore(_: Any) -> None:  # what torch has cast to the type of the parameter
            keys = chain.from_iterable(group["params"] for group in loaded["param_groups"])
            for key, p in zip(keys, self._all_params(), strict=True):
                self.state.get(p, {}).update(loaded["state"].get(key, {}))

        hooks = [self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))]
        hooks.append(self.register_load_state_dict_post_hook(restore, prepend=True))
        try:
            super().load_state_dict(state_dict)
            self._build()
        except BaseException:
            self.state, self.param_groups = before
            self._inner = None
            raise
        finally:
            for hook in hooks:
                hook.remove()

    def _all_params(self) -> list[Tensor]:
        return [*chain.from_iterable(group["params"] for group in self.param_groups)]

    def _state_values(self) -> list[Any]:
        return [*chain.from_iterable(map(dict.values, self.state.values()))]

    def _hyper_parameters(self, group: dict[str, Any]) -> dict[str, Any]:
        values = ((name, group[name]) for name in self._names)
        return {name: value if type(value) is float else number(value) for name, value in values}

    def _layout(self) -> list[Any]:
        """What the fastadam optimizer is made for."""
        kinds = [bool(group[name]) for group in self.param_groups for name in STATE_DEPENDS_ON if name in group]
        return [*kinds, *map(Tensor.data_ptr, self._index), *map(Tensor.stride, self._index)]

    def _build(self) -> None:
        """Make a fastadam optimizer of what there is."""
        self._freed = set()
        self._inner, groups, cuts, slots = None, [], [], list[Slot]()
        self._names = [name for name in self.defaults if name in HYPER_PARAMETERS]
        for group in self.param_groups:
            for flag in "capturable", "differentiable":
                if group.get(flag):
                    raise ValueError(f"fastadam has no {flag}=True; set it to False, or use torch's own class")
            own = [Slot(p) for p in dict.fromkeys(group["params"])]
            groups.append({**self._hyper_parameters(group), "params": [slot.array for slot in own]})
            cuts.append(slice(len(slots), len(slots) + len(own)))
            slots += own
        inner = self._rule(groups, **{name: value for name, value in self._options.items() if value is not None})
        fresh = inner.state_dict(raw=True)
        entries = [self.state.get(slot.tensor) or {} for slot in slots]
        saved = [slot.saved(entries[i], fresh["state"][i]) for i, slot in enumerate(slots)]
        if any(saved):
            inner.load_state_dict({**fresh, "state": {i: state for i, state in enumerate(saved) if state}})
            fresh = inner.state_dict(raw=True)  # numbers in it have changed
        steps, products = torch.zeros(len(saved)), torch.ones(len(saved), dtype=torch.float64)
        for i, slot in enumerate(slots):
            steps[i], products[i] = saved[i].get("step", 0.0), saved[i].get("mu_product", 1.0)
            slot.show(fresh["state"][i], {"step": steps[i], "mu_product": products[i]})
            if self._rule is fastadam.SGD:
                del slot.shown["step"]
            if saved[i]:
                for name in [name for name in entries[i] if base(name) in {*map(base, slot.shown)}]:
                    del entries[i][name]
                entries[i].update(slot.shown)
        self._slots, self._cuts, self._size = slots, cuts, sum(slot.array.size for slot in slots)
        self._steps, self._products, self._counted = steps.numpy(), products.numpy(), steps.numpy().tobytes()
        self._hidden = {i for i, slot in enumerate(slots) if slot.shown and not saved[i]}
        self._params, self._index = self._all_params(), {slot.tensor: i for i, slot in enumerate(slots)}
        times = Counter(self._params)  # one that is given twice is stepped twice, as in torch
        self._passes = [{self._index[p] for p in times if times[p] > k} for k in range(max(times.values()))]
        self._made_for, self._values, self._inner = self._layout(), self._state_values(), inner
        self._read: list[list[Any]] = [[] for _ in groups]  # values of the options

    def _prepare(self) -> None:
        """Has anybody changed state or parameters since the last step? And what are the hyper-parameters now?"""
        if not (
            self._inner is not None
            and same(self._all_params(), self._params)
            and same(self._state_values(), self._values)
            and self._steps.tobytes() == self._counted
            and self._layout() == self._made_for
        ):
            self._build()
        for k, group in enumerate(self.param_groups):
            if not same([*group.values()], self._read[k]):
                values = self._hyper_parameters(group)
                self._inner.param_groups[k].update(values)
                may_change = any(value is not group[name] for name, value in values.items())  # a tensor, or a list
                self._read[k] = [] if may_change else [*group.values()]
        threads = self.threads or max(1, min(torch.get_num_threads(), self._size // GRAIN))
        if self._inner.threads != threads:
            self._inner.threads = threads

    @torch.compiler.disable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parameters that have a gradient. `closure` computes loss and gradients before; returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)  # of a GradScaler
        if found_inf is not None and found_inf.item():
            return loss
        self._prepare()
        self._freed.clear()
        if len(self._passes) > 1 and self.max_norm is not None:
            raise ValueError("a parameter is given twice, and max_norm would count it twice; give each parameter once")
        grads, inner = [slot.gradient() for slot in self._slots], self._inner
        for which in self._passes:
            now = grads if len(which) == len(grads) else [g if i in which else None for i, g in enumerate(grads)]
            skipped = inner.skipped_steps
            inner.step([now[cut] for cut in self._cuts], grad_scale=1.0 if scale is None else 1.0 / scale.item())
            if inner.skipped_steps == skipped:
                self._show([i for i, grad in enumerate(now) if grad is not None])
        return loss

    def _show(self, stepped: list[int]) -> None:
        """Let torch see that these parameters have taken a step."""
        if len(stepped) == len(self._slots):
            self._steps += 1.0
        else:
            self._steps[stepped] += 1.0
        self._counted = self._steps.tobytes()
        for i in stepped if self._rule is fastadam.NAdam else ():
            self._products[i] = self._inner.state[i]["mu_product"]
        if self._hidden:
            for i in self._hidden.intersection(stepped):
                self.state[self._slots[i].tensor].update(self._slots[i].shown)
            self._hidden.difference_update(stepped)
            self._values = self._state_values()
        torch.autograd.graph.increment_version([self._slots[i].tensor for i in stepped])

    def free_gradients_in_backward(self) -> Callable[[], None]:
        """Step each parameter inside `backward`, as soon as its gradient is there, and free the gradient.

        `step` then finds none; go on calling it. Not with `max_norm`, and not where gradients of several calls of
        `backward` are added. Returns a function that ends it.
        """
        if self.max_norm is not None or len(self._passes) > 1:
            raise ValueError("steps in backward need max_norm=None (use max_norm_each), and each parameter given once")
        self._freed = {*self._index}  # in this backward

        def step_one(p: Tensor) -> None:
            if not self._freed or p in self._freed:  # a new one
                self._prepare()
                self._freed.clear()
            self._freed.add(p)
            i, skipped = self._index[p], self._inner.skipped_steps
            self._inner.step_one(i, self._slots[i].gradient())
            if self._inner.skipped_steps == skipped:
                self._show([i])
            p.grad = None

        handles = [p.register_post_accumulate_grad_hook(step_one) for p in self._index]
        return lambda: [handle.remove() for handle in handles].clear()


class Adam(Adapter, torch.optim.Adam, rule=fastadam.Adam): ...


class AdamW(Adapter, torch.optim.AdamW, rule=fastadam.Adam): ...


class NAdam(Adapter, torch.optim.NAdam, rule=fastadam.NAdam): ...


class RAdam(Adapter, torch.optim.RAdam, rule=fastadam.RAdam): ...


class Adamax(Adapter, torch.optim.Adamax, rule=fastadam.Adamax): ...


class SGD(Adapter, torch.optim.SGD, rule=fastadam.SGD): ...


class RMSprop(Adapter, torch.optim.RMSprop, rule=fastadam.RMSprop): ...


class Adagrad(Adapter, torch.optim.Adagrad, rule=fastadam.Adagrad): ...
