"""Types of the compiled part; everything not documented here is private."""

from collections.abc import Sequence
from threading import RLock
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias, final

import numpy as np
from typing_extensions import disjoint_base

from fastadam._layout import Order
from fastadam.containers import Structure
from fastadam.statedict import LoadPlan

# What the functions take: one array, or a list or tuple of them; one step, or one for each.
_Arrays: TypeAlias = np.ndarray | Sequence[np.ndarray]
_Gradients: TypeAlias = np.ndarray | np.floating | Sequence[np.ndarray | np.floating]
_Steps: TypeAlias = SupportsIndex | Sequence[SupportsIndex]

HYPER_PARAMETERS: frozenset[str]
FIXED_FLAGS: tuple[str, ...]
FORMATS: tuple[str, ...]
SHARED_TEAM: bool
BLAS_NUMBERS: int
MOST_CALLBACK: int
_C_API: object
__pyx_capi__: dict[str, object]

class PerformanceWarning(UserWarning): ...

@final
class Rows:
    @property
    def rows(self) -> np.ndarray: ...
    @property
    def grads(self) -> np.ndarray: ...
    def __new__(cls, rows: np.ndarray, grads: np.ndarray) -> Rows: ...

def share_steps(yes: bool) -> None: ...
def share_with_blas(setter: int, share: bool) -> None: ...
def threads_to_share(count: int) -> int: ...
def steps_on() -> str: ...
def adam_update(
    param: _Arrays,
    grad: _Gradients,
    exp_avg: _Arrays,
    exp_avg_sq: _Arrays,
    step: _Steps,
    *,
    lr: SupportsFloat = 1e-3,
    betas: Sequence[SupportsFloat] = (0.9, 0.999),
    eps: SupportsFloat = 1e-8,
    weight_decay: SupportsFloat = 0.0,
    decoupled_weight_decay: bool = False,
    amsgrad: bool = False,
    max_exp_avg_sq: _Arrays | None = None,
    maximize: bool = False,
    bias_correction: bool = True,
    eps_root: SupportsFloat = 0.0,
    eps_hat: bool = False,
    grad_scale: SupportsFloat = 1.0,
    rows: np.ndarray | Sequence[np.ndarray | None] | None = None,
    threads: SupportsIndex | None = None,
) -> None: ...
def nadam_update(
    param: _Arrays,
    grad: _Gradients,
    exp_avg: _Arrays,
    exp_avg_sq: _Arrays,
    step: _Steps,
    mu_product: SupportsFloat | Sequence[SupportsFloat],
    *,
    lr: SupportsFloat = 2e-3,
    betas: Sequence[SupportsFloat] = (0.9, 0.999),
    eps: SupportsFloat = 1e-8,
    weight_decay: SupportsFloat = 0.0,
    momentum_decay: SupportsFloat = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    grad_scale: SupportsFloat = 1.0,
    rows: np.ndarray | Sequence[np.ndarray | None] | None = None,
    threads: SupportsIndex | None = None,
) -> Any: ...
def radam_update(
    param: _Arrays,
    grad: _Gradients,
    exp_avg: _Arrays,
    exp_avg_sq: _Arrays,
    step: _Steps,
    *,
    lr: SupportsFloat = 1e-3,
    betas: Sequence[SupportsFloat] = (0.9, 0.999),
    eps: SupportsFloat = 1e-8,
    weight_decay: SupportsFloat = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    grad_scale: SupportsFloat = 1.0,
    rows: np.ndarray | Sequence[np.ndarray | None] | None = None,
    threads: SupportsIndex | None = None,
) -> None: ...
def adamax_update(
    param: _Arrays,
    grad: _Gradients,
    exp_avg: _Arrays,
    exp_inf: _Arrays,
    step: _Steps,
    *,
    lr: SupportsFloat = 2e-3,
    betas: Sequence[SupportsFloat] = (0.9, 0.999),
    eps: SupportsFloat = 1e-8,
    weight_decay: SupportsFloat = 0.0,
    maximize: bool = False,
    grad_scale: SupportsFloat = 1.0,
    rows: np.ndarray | Sequence[np.ndarray | None] | None = None,
    threads: SupportsIndex | None = None,
) -> None: ...
def sgd_update(
    param: _Arrays,
    grad: _Gradients,
    step: _Steps,
    *,
    momentum_buffer: _Arrays | None = None,
    lr: SupportsFloat = 1e-3,
    momentum: SupportsFloat = 0.0,
    dampening: SupportsFloat = 0.0,
    weight_decay: SupportsFloat = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    grad_scale: SupportsFloat = 1.0,
    rows: np.ndarray | Sequence[np.ndarray | None] | None = None,
    threads: SupportsIndex | None = None,
) -> None: ...
def rmsprop_update(
    param: _Arrays,
    grad: _Gradients,
    square_avg: _Arrays,
    step: _Steps,
    *,
    momentum_buffer: _Arrays | None = None,
    grad_avg: _Arrays | None = None,
    lr: SupportsFloat = 1e-2,
    alpha: SupportsFloat = 0.99,
    eps: SupportsFloat = 1e-8,
    weight_decay: SupportsFloat = 0.0,
    momentum: SupportsFloat = 0.0,
    centered: bool = False,
    maximize: bool = False,
    grad_scale: SupportsFloat = 1.0,
    rows: np.ndarray | Sequence[np.ndarray | None] | None = None,
    threads: SupportsIndex | None = None,
) -> None: ...
def adagrad_update(
    param: _Arrays,
    grad: _Gradients,
    sum: _Arrays,
    step: _Steps,
    *,
    lr: SupportsFloat = 1e-2,
    lr_decay: SupportsFloat = 0.0,
    weight_decay: SupportsFloat = 0.0,
    initial_accumulator_value: SupportsFloat = 0.0,
    eps: SupportsFloat = 1e-10,
    maximize: bool = False,
    grad_scale: SupportsFloat = 1.0,
    rows: np.ndarray | Sequence[np.ndarray | None] | None = None,
    threads: SupportsIndex | None = None,
) -> None: ...
def rowadagrad_update(
    param: _Arrays,
    grad: _Gradients,
    sum: _Arrays,
    step: _Steps,
    *,
    lr: SupportsFloat = 1e-2,
    lr_decay: SupportsFloat = 0.0,
    weight_decay: SupportsFloat = 0.0,
    initial_accumulator_value: SupportsFloat = 0.0,
    eps: SupportsFloat = 1e-10,
    maximize: bool = False,
    grad_scale: SupportsFloat = 1.0,
    rows: np.ndarray | Sequence[np.ndarray | None] | None = None,
    threads: SupportsIndex | None = None,
) -> None: ...
def set_num_threads(n: SupportsIndex | None) -> None: ...
def get_num_threads() -> int: ...
def isa() -> str: ...
def isas_available() -> list[str]: ...
def select_isa(name: str | None) -> None: ...
def has_openmp() -> bool: ...

LEAST_SCALES: tuple[int, int]
GROUP: int
SQUARES: int
NONFINITE: int
OVERFLOWS: int

def decoded_state(
    codes: np.ndarray,
    scale: np.ndarray | None,
    is_positive: bool,
    order: Order,
    shape: tuple[int, ...],
) -> np.ndarray: ...
def decoded_master(upper: np.ndarray, low: np.ndarray) -> np.ndarray: ...
def copy_arrays(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None: ...
def check_group(group: dict[str, Any]) -> None: ...
def has_schedule(value: Any) -> bool: ...

@final
class Copies: ...

@final
class Group:
    mask: int
    records: np.ndarray
    def check(self, values: dict[str, Any], is_ours: bool) -> None: ...
    def last_values(self) -> dict[str, Any]: ...

@final
class Rule:
    def __new__(cls, family: str, hypers: str, needs: dict[str, str] | None = None) -> Rule: ...

@final
class Update: ...

@disjoint_base
class StateArrays:
    names: list[str]
    wrap_mask: int
    keys: list[Any]
    arrays: list[tuple[np.ndarray, ...]]
    groups: list[Group]
    @property
    def family(self) -> str: ...
    def records(self) -> np.ndarray: ...
    def index_of(self, key: Any) -> int: ...
    def entry(self, i: int) -> dict[str, Any]: ...
    def raw_state(self, i: int) -> dict[str, np.ndarray]: ...
    def decoded(self, i: int, name: str) -> np.ndarray: ...
    def encoded(self, i: int, name: str, values: np.ndarray) -> dict[str, np.ndarray]: ...
    def low_bits(self, i: int, master: np.ndarray, param: np.ndarray) -> np.ndarray | None: ...
    def is_positive(self, name: str) -> bool: ...
    def memory_order(self, i: int) -> Order: ...
    @property
    def nbytes(self) -> int: ...

@disjoint_base
class Parameters(StateArrays):
    def __new__(cls, family: str, names: list[str], settings: Any, wrap_mask: int | None = None) -> Parameters: ...
    lock: RLock
    structure: Structure
    swapped: bool
    store: Any
    def renew_lock(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None: ...
    def add_group(self, keys: Any, params: Any, values: Any, groups: Any, structure: Any, mask: Any = None) -> None: ...
    def load(self, plan: LoadPlan) -> None: ...
    def rebind(self, i: int, array: np.ndarray, keep_master: bool, groups: list[dict[str, Any]]) -> None: ...
    def keep_in(self, store: Any) -> None: ...
    def check_readable(self) -> None: ...
    def written_by(self, array: np.ndarray) -> str | None: ...

@final
class Engine(Parameters):
    settings: dict[str, Any]
    threads_used: int
    skipped: int
    def change_settings(self, changes: dict[str, Any]) -> None: ...
    @property
    def grad_norm(self) -> float | None: ...
    def check_groups(self, groups: list[dict[str, Any]]) -> None: ...
    def reset_masters(self, which: list[int]) -> None: ...
    def step(self, grads: Any, groups: list[dict[str, Any]], grad_scale: SupportsFloat) -> None: ...
    def step_one(self, i: int, grad: Any, groups: list[dict[str, Any]], grad_scale: SupportsFloat) -> None: ...

def place_parts(engine: Engine, first: int, numbers: list[int], origins: list[int]) -> None: ...
def read_values(engine: Engine, groups: list[dict[str, Any]]) -> list[dict[str, Any]]: ...
def update_part(engine: Engine, first: int, grads: list[Any], grad_scale: float) -> None: ...
def block_squares(engine: Engine, grads: list[Any], grad_scale: float) -> np.ndarray: ...
def find_anomaly(
    engine: Engine, max_norm: float, norm: float, scale: float, scales: list[float]
) -> tuple[int, int]: ...
def clipped(scale: float, max_norm: float, norm: float) -> float: ...
def converted(grad: np.ndarray, param: np.ndarray, name: str, warn: bool) -> np.ndarray: ...
def make_gradients(
    out: np.ndarray,
    grads: list[Any],
    sums: list[Any],
    scale: float,
    mean: float,
    threads: int,
) -> None: ...

@disjoint_base
class Locked:
    def __new__(cls, engine: Engine) -> Locked: ...
    def __enter__(self) -> None: ...
    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None: ...

@final
class Swapped(Locked): ...
