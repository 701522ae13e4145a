"""torch's optimizers for the CPU, computed by fastadam. In a training script only the import changes.

    from fastadam.torch import AdamW
    opt = AdamW(model.parameters(), lr=1e-3, max_norm=1.0)

Each class is a subclass of torch's class of that name. Groups, hooks and state dicts are torch's own code, and torch's
`param_groups` and `state` are what counts. The tensors in `state` are views of the arrays of a fastadam optimizer. If a
step finds others there, or parameters elsewhere in memory, it makes a new fastadam optimizer of what it finds.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature, signature
from itertools import chain, islice
from operator import is_
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor

import fastadam
from fastadam._tensors import COUNTERS, Slot, base, number

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]

# What the classes take beside torch's arguments. `fastadam.Optimizer` documents it.
OPTIONS: dict[str, Any] = {"max_norm": None, "max_norm_each": None, "nonfinite": "propagate", "threads": None}
OPTIONS |= {"state_dtype": "float32", "seed": 0}
STATE_DEPENDS_ON = ("amsgrad", "centered", "momentum")
GRAIN = 32768  # elements for each thread at least, as in torch

# What errors of fastadam's optimizers are about -> what to do in torch.
OWN_OPTIMIZER = "give such parameters an optimizer of their own, with state_dtype='float32'"
IN_TORCH = {
    "overlap": "p.data = p.data.clone(); or one parameter for both, given once",
    "share a scale": OWN_OPTIMIZER,
    "state in fewer bits": OWN_OPTIMIZER,
}


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Are these the same objects?"""
    return len(one) == len(other) and all(map(is_, one, other))


def setting(name: str) -> Any:
    def write(optimizer: Any, value: Any) -> None:
        if optimizer._inner is None:
            optimizer._build()
        setattr(optimizer._inner, name, value)
        optimizer._options[name] = value

    return property(lambda optimizer: optimizer._options[name], write, doc="As in fastadam's own optimizers.")


def with_options(of_torch: Signature) -> Signature:
    options = [Parameter(name, Parameter.KEYWORD_ONLY, default=default) for name, default in OPTIONS.items()]
    return of_torch.replace(parameters=[*of_torch.parameters.values(), *options])


class Adapter(torch.optim.Optimizer):
    """torch's class of this name, with its arguments. Those from `max_norm` on are fastadam's (docs/torch.md)."""

    __signature__: Any
    _rule: Any  # fastadam's class
    state: Any
    param_groups: Any
    _inner: Any = None  # an optimizer of that class, made for what there was at the last step
    _freed: set[Tensor]  # parameters whose gradients were freed since
    max_norm, max_norm_each, nonfinite, threads = map(setting, ("max_norm", "max_norm_each", "nonfinite", "threads"))
    skipped_steps = 0  # by nonfinite="skip"
    grad_norm = property(lambda self: self._inner and self._inner.grad_norm, doc="Of the last step, before clipping.")

    def __init_subclass__(cls, rule: Any = None) -> None:
        super().__init_subclass__()
        if rule is not None:
            cls._rule, cls.__signature__ = rule, with_options(signature(cls.__bases__[1]))
        elif cls.__init__ is not Adapter.__init__:
            cls.__signature__ = None  # that of __init__

    def __init__(self, params: Any, *args: Any, **named: Any) -> None:
        self._options = {name: named.pop(name, default) for name, default in OPTIONS.items()}
        try:
            super().__init__(params, *args, **named)
        except TypeError as error:
            if any(map(callable, (*args[:1], named.get("lr")))):
                error.add_note("lr must be a number; for a schedule give lr=1.0, and LambdaLR(opt, schedule) of torch.")
            for name in named.keys() & signature(self._rule).parameters.keys():
                if repr(name) in str(error):
                    error.add_note(f"{name} is for fastadam's own optimizers, which update NumPy arrays.")
            raise
        self._build()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            for name in OPTIONS.keys() & self.param_groups[-1]:
                raise ValueError(f"{name} is no option of groups; give it to {type(self).__name__}, for all of them")
            for p in self.param_groups[-1]["params"]:
                Slot(p)
        except BaseException:
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_options": self._options, "skipped_steps": self.skipped_steps}

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
        except BaseException as error:
            self.state, self.param_groups = before
            self._inner = None
            if isinstance(error, KeyError) and str(error) in map(repr, ("step", *self.defaults)):
                how = "; SparseAdam's loads with opt.state_dict()['param_groups'] in place of its own"
                raise ValueError(
                    f"the state dict has no {error}, which {type(self).__name__} needs: it is of another optimizer"
                    f"{how * (self._rule is fastadam.Adam)}"
                ) from error
            raise
        finally:
            for hook in hooks:
                hook.remove()

    def _all_params(self) -> list[Tensor]:
        return [*chain.from_iterable(group["params"] for group in self.param_groups)]

    def _state_values(self) -> list[Any]:
        return [*chain.from_iterable(entry.values() for entry in self.state.values() if isinstance(entry, dict))]

    def _hyper_parameters(self, group: dict[str, Any]) -> dict[str, Any]:
        return {name: number(group[name]) for name in self._names}

    def _layout(self) -> list[Any]:
        """What the fastadam optimizer is made for."""
        kinds = [bool(group[name]) for group in self.param_groups for name in STATE_DEPENDS_ON if name in group]
        return [*kinds, *map(Tensor.stride, self._index), *map(Tensor.data_ptr, self._watched)]

    def _build(self) -> None:
        """Make a fastadam optimizer of torch's groups and state."""
        self._inner, self._freed, self._params = None, set(), self._all_params()
        self._names = self.defaults.keys() & signature(self._rule).parameters.keys()
        self._index = {p: i for i, p in enumerate(dict.fromkeys(self._params))}
        self._again = [self._index[p] for p in (Counter(self._params) - Counter([*self._index])).elements()]
        self._slots, groups = [Slot(p) for p in self._index], []
        for group in self.param_groups:
            for flag in "capturable", "differentiable":
                if group.get(flag):
                    raise ValueError(f"fastadam has no {flag}=True; set it to False, or use torch's own class")
            own = [self._slots[self._index[p]].array for p in dict.fromkeys(group["params"])]
            groups.append({**self._hyper_parameters(group), "params": own})
        try:
            inner = self._rule(groups, **{name: value for name, value in self._options.items() if value is not None})
            fresh = inner.state_dict(raw=True)
            entries = [self.state.get(p) or {} for p in self._index]
            saved = [slot.saved(entries[i], fresh["state"][i]) for i, slot in enumerate(self._slots)]
            if any(saved):
                inner.load_state_dict({**fresh, "state": {i: state for i, state in enumerate(saved) if state}})
                fresh = inner.state_dict(raw=True)  # numbers in it have changed
        except (TypeError, ValueError) as error:
            self._explain(error)
            raise
        self._steps = np.array([state.get("step", 0.0) for state in saved], np.float32)
        self._products = np.array([state.get("mu_product", 1.0) for state in saved])
        steps, products = torch.from_numpy(self._steps), torch.from_numpy(self._products)
        for i, slot in enumerate(self._slots):
            slot.show(fresh["state"][i], {"step": steps[i], "mu_product": products[i]})
            if self._rule is fastadam.SGD:
                del slot.shown["step"]
            if saved[i]:
                ours = {*map(base, fresh["state"][i])}
                others = {k: v for k, v in entries[i].items() if "::" not in k and k not in ours}
                entries[i].clear()
                entries[i].update(slot.shown | others)
        self._hidden = {i for i, slot in enumerate(self._slots) if slot.shown and not saved[i]}
        # Tensors whose memory must stay where it is. (The counters of each parameter are parts of steps and products.)
        self._watched = [*self._index, steps, products]
        for slot in self._slots:
            self._watched += [x for name, x in slot.shown.items() if isinstance(x, Tensor) and name not in COUNTERS]
        self._made_for, self._values, self._counted = self._layout(), self._state_values(), self._steps.tobytes()
        self._elements = sum(slot.array.size for slot in self._slots)
        self._group_sizes = [len(group["params"]) for group in groups]
        self._inner, self._skipped = inner, 0
        self._read: list[list[Any]] = [[] for _ in groups]  # values of the options

    def _prepare(self) -> None:
        """Build anew if state or parameters were changed since the last step; pass on the hyper-parameters."""
        if not (
            self._inner is not None
            and same(self._all_params(), self._params)
            and same(self._state_values(), self._values)
            and self._steps.tobytes() == self._counted
            and self._layout() == self._made_for
        ):
            try:
                self._build()
            except ValueError as error:
                if "must have the shape" in str(error):
                    error.add_note("In torch: the shape of a parameter has changed; make a new optimizer.")
                raise
        for k, group in enumerate(self.param_groups):
            if not same([*group.values()], self._read[k]):
                values = self._hyper_parameters(group)
                self._inner.param_groups[k].update(values)
                may_change = any(value is not group[name] for name, value in values.items())  # a tensor, or a list
                self._read[k] = [] if may_change else [*group.values()]
        threads = self.threads or max(1, min(torch.get_num_threads(), self._elements // GRAIN))
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
        if self._again and self.max_norm is not None:
            raise ValueError("a parameter is given twice, and max_norm would count it twice; give each parameter once")
        grads, grad_scale = [slot.gradient() for slot in self._slots], 1.0 if scale is None else 1.0 / scale.item()
        remaining = iter(grads)
        try:
            self._inner.step([[*islice(remaining, size)] for size in self._group_sizes], grad_scale=grad_scale)
        except (TypeError, ValueError, FloatingPointError) as error:
            if not isinstance(error, FloatingPointError):
                self._inner = None  # p.data may have become a part of what it was, which only its gradient shows
            self._explain(error)
            raise
        if self._show([i for i, grad in enumerate(grads) if grad is not None]):
            for i in self._again:  # what is given twice is stepped twice, as in torch
                self._step_one(i, grads[i], grad_scale)
        return loss

    def _step_one(self, i: int, grad: Any, grad_scale: float = 1.0) -> None:
        if grad is not None:
            self._inner.step_one(i, grad, grad_scale=grad_scale)
            self._show([i])

    def _explain(self, error: Exception) -> None:
        """Add what the parameters that an error numbers are called, and what to do in torch."""
        names: dict[Tensor, str] = {}
        for group in self.param_groups:
            if len(group.get("param_names", ())) == len(group["params"]):  # it may have been changed
                names.update(zip(group["params"], group["param_names"], strict=True))
        called = [names.get(p) for p in self._index]
        for i in dict.fromkeys(map(int, re.findall(r"parameter (\d+)", str(error)))):
            if i < len(called) and called[i]:
                error.add_note(f"Parameter {i} is {called[i]}.")
        for about, how in IN_TORCH.items():
            if about in str(error):
                error.add_note(f"In torch: {how}.")

    def _show(self, stepped: list[int]) -> bool:
        """Let torch see that these parameters have taken a step. False if it was skipped."""
        if self._inner.skipped_steps != self._skipped:
            self.skipped_steps += 1
            self._skipped = self._inner.skipped_steps
            return False
        self._steps[slice(None) if len(stepped) == len(self._slots) else stepped] += 1.0
        self._counted = self._steps.tobytes()
        for i in stepped if self._rule is fastadam.NAdam else ():
            self._products[i] = self._inner.state[i]["mu_product"]
        if self._hidden:
            for i in self._hidden.intersection(stepped):
                self.state[self._slots[i].tensor].update(self._slots[i].shown)
            self._hidden.difference_update(stepped)
            self._values = self._state_values()
        torch.autograd.graph.increment_version([self._slots[i].tensor for i in stepped])
        return True

    def free_gradients_in_backward(self) -> Callable[[], None]:
        """Step each parameter inside `backward`, as soon as its gradient is there, and free the gradient.

        `step` then finds none; go on calling it. Not with `max_norm` or a GradScaler, and not where gradients of
        several calls of `backward` are added. Parameters that need no gradient now, and those added later, are left to
        `step`.

        Returns
        -------
        function
            Call it without arguments to end this.

        Raises
        ------
        ValueError
            `max_norm` is set, or a parameter is given twice.

        Examples
        --------
        >>> import torch, fastadam.torch
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = fastadam.torch.SGD(model.parameters(), lr=0.1)
        >>> end = opt.free_gradients_in_backward()
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> model.weight.grad is None
        True
        >>> end()
        """
        self._prepare()
        if self.max_norm is not None or self._again:
            raise ValueError("steps in backward need max_norm=None (use max_norm_each), and each parameter given once")
        self._freed = {*self._index}  # in this backward

        alive = ref(self)  # torch never frees what a hook of this kind holds

        def hook(p: Tensor) -> None:
            optimizer = alive()
            if optimizer is not None:
                optimizer._step_and_free(p)

        handles = [p.register_post_accumulate_grad_hook(hook) for p in self._index if p.requires_grad]
        return lambda: [handle.remove() for handle in handles].clear()

    def _step_and_free(self, p: Tensor) -> None:
        i = self._index.get(p, -1)  # -1: it was taken out of its group
        if not self._freed or p in self._freed or p.data_ptr() != self._slots[i].pointer:  # a new backward
            self._prepare()
            self._freed.clear()
            i = self._index.get(p, -1)
        if i >= 0:
            self._freed.add(p)
            self._step_one(i, self._slots[i].gradient())
            p.grad = None


class Adam(Adapter, torch.optim.Adam, rule=fastadam.Adam): ...


class AdamW(Adapter, torch.optim.AdamW, rule=fastadam.Adam): ...


class NAdam(Adapter, torch.optim.NAdam, rule=fastadam.NAdam): ...


class RAdam(Adapter, torch.optim.RAdam, rule=fastadam.RAdam): ...


class Adamax(Adapter, torch.optim.Adamax, rule=fastadam.Adamax): ...


class SGD(Adapter, torch.optim.SGD, rule=fastadam.SGD): ...


class RMSprop(Adapter, torch.optim.RMSprop, rule=fastadam.RMSprop): ...


class Adagrad(Adapter, torch.optim.Adagrad, rule=fastadam.Adagrad): ...
