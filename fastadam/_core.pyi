"""Types of the compiled part; everything not documented here is private."""

from collections.abc import Sequence
from threading import RLock
from typing import Any, SupportsFloat, SupportsIndex, final

import numpy as np

STATE_NAMES: tuple[str, ...]
UPDATE_NAMES: tuple[str, ...]
SCHEDULABLE: tuple[str, ...]
GROUP_KEYS: frozenset[str]
MAX_THREADS: int

class PerformanceWarning(UserWarning): ...

def share_with_blas(setter: int, share: bool) -> None: ...
def adam_update(
    param: np.ndarray,
    grad: np.ndarray | np.floating,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    step: SupportsIndex,
    *,
    lr: SupportsFloat = 1e-3,
    betas: Sequence[SupportsFloat] = (0.9, 0.999),
    eps: SupportsFloat = 1e-8,
    weight_decay: SupportsFloat = 0.0,
    decoupled_weight_decay: bool = False,
    amsgrad: bool = False,
    max_exp_avg_sq: np.ndarray | None = None,
    maximize: bool = False,
    bias_correction: bool = True,
    eps_root: SupportsFloat = 0.0,
    eps_hat: bool = False,
    grad_scale: SupportsFloat = 1.0,
    threads: SupportsIndex | None = None,
) -> None: ...
def set_num_threads(n: SupportsIndex | None) -> None: ...
def get_num_threads() -> int: ...
def isa() -> str: ...
def isas_available() -> list[str]: ...
def select_isa(name: str | None) -> None: ...
def has_openmp() -> bool: ...
def as_threads(threads: SupportsIndex | None, name: str = "threads") -> int: ...
def as_max_norm(value: SupportsFloat | None) -> float: ...
def as_nonfinite(value: str) -> int: ...
def as_number(value: Any, name: str) -> float: ...
def check_group(group: dict[str, Any]) -> None: ...

@final
class Engine:
    lock: RLock
    keys: list[Any]
    arrays: list[tuple[np.ndarray, ...]]
    threads_used: int
    skipped: int
    def renew_lock(self) -> None: ...
    @property
    def grad_norm(self) -> float | None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
    def index_of(self, key: Any) -> int: ...
    def step_of(self, i: int) -> int: ...
    def steps(self) -> list[int]: ...
    def add_group(
        self, keys: list[Any], params: tuple[np.ndarray, ...], amsgrad: bool, lists: list[tuple[list[Any], Any]]
    ) -> None: ...
    def check_groups(self, groups: list[dict[str, Any]]) -> None: ...
    def load(
        self,
        groups: list[dict[str, Any]],
        new_groups: list[dict[str, Any]],
        new_arrays: list[list[np.ndarray]],
        steps: list[int],
    ) -> None: ...
    def step(
        self,
        grads: list[Any],
        groups: list[dict[str, Any]],
        grad_scale: SupportsFloat,
        threads: SupportsIndex | None,
        max_norm: SupportsFloat | None,
        nonfinite: str,
    ) -> None: ...
