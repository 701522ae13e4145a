"""What trains in the quality bench: formats of fastadam.Adam, what they are compared with, and peers.

`step(grads, lr)` changes the float32 arrays that the model computes with. `nbytes()` is what is kept from step to step:
parameters, state and corrections. ImportError means that something is not installed, TypeError or ValueError that this
version of fastadam has no such format.
"""

from dataclasses import dataclass, field

import numpy as np

import fastadam

from .low_peers import LOW_PEERS


def bfloat16():
    import ml_dtypes

    return ml_dtypes.bfloat16


class Ours:
    """fastadam.Adam. With bfloat16 parameters the model gets `w.astype(np.float32)` of them."""

    def __init__(self, params, betas, params_low=False, grads_low=False, **options):
        self.params, self.low = params, bfloat16() if params_low or grads_low else None
        self.grads_low = grads_low
        self.stored = {name: p.astype(self.low) for name, p in params.items()} if params_low else params
        self.optimizer = fastadam.Adam(self.stored, betas=betas, threads=1, **options)

    def step(self, grads, lr):
        if self.grads_low:
            grads = {name: grad.astype(self.low) for name, grad in grads.items()}
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step(grads)
        if self.stored is not self.params:
            for name, p in self.stored.items():
                self.params[name][...] = p

    def nbytes(self):
        return sum(p.nbytes for p in self.stored.values()) + self.optimizer.nbytes


class RoundedToNearest(Ours):
    """float32 steps, after which the parameters or the state are rounded to the nearest bfloat16, without more."""

    def __init__(self, params, betas, rounded):
        super().__init__(params, betas)
        arrays = {"parameters": list(params.values()), "state": []}
        for state in (self.optimizer.state[name] for name in params):
            arrays["state"] += [state["exp_avg"], state["exp_avg_sq"]]
        self.rounded, self.low = arrays[rounded], bfloat16()

    def step(self, grads, lr):
        super().step(grads, lr)
        for array in self.rounded:
            array[...] = array.astype(self.low)

    def nbytes(self):
        return super().nbytes() - sum(array.nbytes // 2 for array in self.rounded)


class Peer:
    """8 bits of state in torch, on the memory of the model's arrays."""

    def __init__(self, params, betas, name):
        self.params, self.peer = params, LOW_PEERS[name](list(params.values()), 1, betas=betas)

    def step(self, grads, lr):
        self.peer.step([np.ascontiguousarray(grads[name]) for name in self.params], lr)

    def nbytes(self):
        return sum(p.nbytes for p in self.params.values()) + self.peer.nbytes()


@dataclass(frozen=True)
class Format:
    make: type
    options: dict = field(default_factory=dict)
    bits: int = 0  # 16 or 8: which bar it has; 0: none

    @property
    def process(self):
        """Formats with the same one can train in one process."""
        return self.options["name"] if self.make is Peer else "fastadam"

    @property
    def optional(self):
        """May it be absent?"""
        return self.make is Peer or self.options.get("master_bits") == 24


LOW = {"params_low": True}
FLOAT32, NUDGED = "float32", "float32 nudged"
FORMATS = {
    FLOAT32: Format(Ours),
    "state bfloat16": Format(Ours, {"state_dtype": "bfloat16"}, 16),
    "state 8bit": Format(Ours, {"state_dtype": "8bit"}, 8),
    "bfloat16 parameters": Format(Ours, LOW | {"master_bits": 32}, 16),
    "all bfloat16": Format(Ours, LOW | {"grads_low": True, "state_dtype": "bfloat16"}, 16),
    "bfloat16 parameters + 8bit": Format(Ours, LOW | {"state_dtype": "8bit"}, 8),
    "24-bit parameters + 8bit": Format(Ours, LOW | {"master_bits": 24, "state_dtype": "8bit"}, 8),
    NUDGED: Format(Ours),
    "state to nearest bfloat16": Format(RoundedToNearest, {"rounded": "state"}),
    "parameters to nearest bfloat16": Format(RoundedToNearest, {"rounded": "parameters"}),
    "bitsandbytes AdamW8bit": Format(Peer, {"name": "bitsandbytes"}),
    "bitsandbytes-cpu-fork AdamW8bit": Format(Peer, {"name": "bitsandbytes-cpu-fork"}),
    "torchao AdamW8bit": Format(Peer, {"name": "torchao"}),
}
