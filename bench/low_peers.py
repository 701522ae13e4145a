"""Other people's AdamW with 8 bits of state, on NumPy arrays in place.

Two of them are both imported as bitsandbytes, so each may lie in a folder of its own, and a process can use one:

    python -m pip install --no-deps --target .peers/bitsandbytes bitsandbytes

The same for bitsandbytes-cpu-fork and torchao. ImportError means that it is not installed.
"""

import contextlib
import logging
import sys
import warnings
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

from .peers import BETA1, BETA2, COMPILER, EPS, LR

FOLDER = Path(__file__).parent.parent / ".peers"
LOW_PEERS = {}  # by name


class LowPeer:
    """`arrays` change in place; weight decay is 0. Arrays below 4096 elements keep a float32 state, as they come."""

    package = None  # on PyPI
    compiles = False  # at first use, for each shape

    def __init_subclass__(cls, name=None):
        if name:
            LOW_PEERS[name] = cls

    def __init__(self, arrays, threads, lr=LR, betas=(BETA1, BETA2), **options):
        make_importable(self.package)
        import torch

        torch.set_num_threads(threads)
        self.arrays, self.from_numpy = arrays, torch.from_numpy
        self.tensors = [torch.nn.Parameter(torch.from_numpy(array)) for array in arrays]
        with silence():
            self.optimizer = self.make(lr=lr, betas=betas, eps=EPS, weight_decay=0.0, **options)

    def step(self, grads, lr=None):
        if lr is not None:
            self.set_lr(lr)
        for tensor, grad in zip(self.tensors, grads, strict=True):
            tensor.grad = self.from_numpy(grad)
        self.optimizer.step()

    def set_lr(self, lr):
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def nbytes(self):
        """Of the state: all of its tensors but the tables that a whole optimizer has once."""
        once = {"qmap1", "qmap2"}
        state = [(name, each) for of in self.optimizer.state.values() for name, each in of.items() if name not in once]
        return sum(size_of(each) for _, each in state)


class BitsAndBytes(LowPeer, name="bitsandbytes"):
    package = "bitsandbytes"

    def make(self, **options):
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(self.tensors, **options)


class BitsAndBytesFork(BitsAndBytes, name="bitsandbytes-cpu-fork"):
    """With kernels of its own for CPUs."""

    package = "bitsandbytes-cpu-fork"


class TorchAO(LowPeer, name="torchao"):
    """Compiled, as it comes, or step by step: the same arithmetic, without the seconds that each shape takes."""

    package, compiles = "torchao", True

    def make(self, compiled=True, **options):
        if compiled and not COMPILER:
            raise ImportError("it needs a C++ compiler")
        import torch
        import torchao

        if not compiled:
            torch.compiler.set_stance("force_eager")
        return torchao.optim.AdamW8bit(self.tensors, **options)

    def set_lr(self, lr):
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)


@contextlib.contextmanager
def silence():
    """They warn of what is not there when they are imported: GPUs, mostly."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def make_importable(package):
    """The folder of the package comes first where modules are looked for."""
    own = FOLDER / package
    for path in [str(own), *sys.path] if own.is_dir() else sys.path:
        if any((found.name or "").lower() == package for found in distributions(path=[path])):
            if path not in sys.path:
                sys.path.insert(0, path)
            return
    raise ImportError("it is not installed")


def size_of(value):
    """Bytes of a tensor, or of those that a quantised one consists of."""
    if not hasattr(value, "element_size") or not value.dim():
        return 0
    if hasattr(value, "__tensor_flatten__") and (names := value.__tensor_flatten__()[0]):
        return sum(size_of(getattr(value, name)) for name in names if name != "qmap")
    return value.numel() * value.element_size()


def check(name, starts, grads, ends, steps, lr=LR):
    """Did the arrays move about as with float32? Gradients that stay the same move each element by lr a step.

    A few may be far off: where v becomes 0 beside larger ones, an element leaps.
    """
    for start, grad, end in zip(starts, grads, ends, strict=True):
        moved = (end.reshape(-1).astype(np.float64) - start.reshape(-1)) / (-steps * lr * np.sign(grad.reshape(-1)))
        assert abs(np.median(moved) - 1) <= 0.05, f"{name}: the median step is {np.median(moved):.3f} lr"
        assert (np.abs(moved - 1) <= 0.5).mean() >= 0.99, f"{name}: more than 1 % of the steps are far from lr"
