"""State and parameters in fewer bits: the twin's bits on every path, and all that is around a step."""

import ml_dtypes
import numpy as np
import pytest
from allpairspy import AllPairs
from helpers import ISAS, assert_same_bits, tame

import fastadam
from fastadam import _core, reference

pytestmark = [pytest.mark.usefixtures("restore_isa"), pytest.mark.filterwarnings("error::fastadam.PerformanceWarning")]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
RULES = [
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adam", {"eps_hat": True, "betas": (0.5, 0.9)}),
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9}),
    ("Adagrad", {"initial_accumulator_value": 0.3}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("Adamax", {}),
    ("RowAdagrad", {"weight_decay": 0.1}),
]
STATE_DTYPES = ["float32", "bfloat16", "8bit"]
KINDS = [(np.dtype(np.float32), None), (BFLOAT16, None), (BFLOAT16, 24)]
SHAPES = [(1,), (31,), (33,), (512,), (40, 77), (513,), (9001,), (3, 20_011)]
GRADS = [np.float32, np.float16, ml_dtypes.bfloat16]


def raw(opt, key=0):
    """State as it is stored, without the counters."""
    return {name: value for name, value in opt.state[key].raw.items() if isinstance(value, np.ndarray)}


class Twin:
    """The same optimizer on a copy, by the reference."""

    def __init__(self, opt, param, master_bits, **options):
        self.update = getattr(reference, f"{type(opt).__name__.lower()}_update")
        self.param, self.options, self.product = param.copy("K"), options, {}
        self.state, self.steps = {name: array.copy() for name, array in raw(opt).items()}, 0
        self.formats = {"state_dtype": opt.state_dtype, "master_bits": master_bits, "seed": opt.seed}
        if type(opt).__name__ == "NAdam":
            self.product = {"mu_product": 1.0}

    def step(self, grad, **options):
        options |= self.formats | self.product | self.options
        self.steps += 1
        result = reference.stored_update(
            self.update,
            self.param,
            grad,
            self.steps,
            self.state,
            **options,
        )
        if self.product:
            self.product["mu_product"] = result

    def assert_equals(self, opt, param, what=""):
        assert_same_bits(as_numbers(param), as_numbers(self.param), what)
        ours = raw(opt)
        assert ours.keys() == self.state.keys()
        for name, array in ours.items():
            assert_same_bits(array, self.state[name], f"{name} {what}")


def as_numbers(array):
    return array.view(np.uint16) if array.dtype == BFLOAT16 else array


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_has_the_twins_bits_in_every_format(rule):
    name, options = rule
    for state_dtype, (dtype, bits), isa, threads, shape, half, order in AllPairs(
        [STATE_DTYPES, KINDS, ISAS, [1, 2, 3, 8], SHAPES, GRADS, ["C", "F"]]
    ):
        _core.select_isa(isa)
        rng = np.random.default_rng(len(shape))
        param = np.asarray(tame(rng, shape, np.float32).astype(dtype), order="C" if name == "RowAdagrad" else order)
        formats = {"state_dtype": state_dtype, "master_bits": bits, "seed": 2**63 - 1}
        opt = getattr(fastadam, name)(param, lr=0.01, threads=threads, **formats, **options)
        twin = Twin(opt, param, bits, lr=0.01, **options)
        for _ in range(7 if name == "RAdam" else 3):
            grad = np.asarray(tame(rng, shape, np.float32).astype(half), order=order)
            if name == "RowAdagrad":
                grad = np.ascontiguousarray(grad)
            opt.step(grad, grad_scale=0.7)
            twin.step(grad, grad_scale=0.7)
        twin.assert_equals(opt, param, f"{state_dtype} {dtype} {bits} {isa} {threads} {shape} {half} {order}")
