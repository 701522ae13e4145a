"""Checks of arrays that say what is wrong, and what helps. They run where a quick test (_arrays.pxd) has failed."""

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam._layout import Order, axes_of, order_of
from fastadam.containers import holds_arrays

if TYPE_CHECKING:
    import mmap

HELD = "; if it holds bfloat16, use .view(ml_dtypes.bfloat16)"
KEEP = ", and keep the new array: it is the one that is updated"


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """ml_dtypes' type, without importing it."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2


def name_of_dtype(dtype: np.dtype[Any]) -> str:
    """As files have it."""
    return "bfloat16" if is_bfloat16(dtype) else dtype.str


def is_masked(x: Any) -> bool:
    masked = sys.modules.get("numpy.ma")  # slow to import, so not before somebody else does
    return masked is not None and issubclass(type(x), masked.MaskedArray)


def is_rows(x: Any) -> bool:
    """Is it fastadam.Rows, which this file does not know?"""
    return hasattr(type(x), "grads") and hasattr(type(x), "rows")


def has_arrays(x: Any) -> bool:
    """Is it no array itself, and has it arrays as attributes?"""
    try:
        return not hasattr(type(x), "__array__") and any(map(holds_arrays, vars(x).values()))
    except (TypeError, RecursionError):  # it has no attributes of its own, or they contain themselves
        return False


def describe(x: Any) -> str:
    if is_masked(x):
        return "a masked array"
    if isinstance(x, np.ndarray):
        return f"an array of {x.dtype}, shape {x.shape}"
    return f"a {type(x).__name__}"


def array_of(x: Any, written: bool) -> str:
    """How to make an ndarray of it."""
    kind = type(x)
    keep = KEEP if written else ""
    if x is None or isinstance(x, str | bytes):
        return ""
    if is_masked(x):
        return "; use .data" if written else "; use .filled(0)"
    if isinstance(x, int | float | np.generic):
        return f"; use np.array(x), or np.array([x, ...]) of the numbers that belong together{keep}"
    if callable(x):
        return "; call it"
    if is_rows(x):
        return "; give it to step of an optimizer, or rows=x.rows, grad=x.grads to a function"
    if isinstance(x, list | tuple) and any(map(is_rows, x)):
        return "; join them: fastadam.Rows(np.concatenate([each.rows for each in x]), np.concatenate([each.grads ...]))"
    if isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], np.ndarray) and x[0].dtype.kind in "iu":
        return "; for rows of a table give fastadam.Rows(*x)"
    if isinstance(x, Mapping):
        return "; give one array, or fastadam.Rows for some rows of a table" if not written else ""
    if hasattr(kind, "detach") and hasattr(kind, "numpy"):  # torch's: the same memory
        return "; use .detach().numpy()"
    if hasattr(kind, "toarray") and not written:
        return "; use .toarray(), or for some rows of a table fastadam.Rows(rows, x.tocsr()[rows].toarray())"
    if has_arrays(x):
        return "; give its arrays in a dict or list: vars(x), for example"
    how = ".toarray()" if hasattr(kind, "toarray") else "np.array(x)" if written else "np.asarray(x)"
    return f"; use {how}{keep}"


def real_of_complex(array: np.ndarray) -> str:
    """How to get float32 or float64 of complex numbers, parts in turn, in the same memory where that can be."""
    view = f".view(np.{'float32' if array.dtype.char == 'F' else 'float64'})"
    if array.dtype.char not in "FD" or not array.dtype.isnative:
        return f"use .astype(np.{'complex64' if array.dtype.char == 'F' else 'complex128'}){view}{KEEP}"
    if array.ndim == 0:
        return f"use .reshape(1){view}, which is the same memory"
    if array.flags.c_contiguous:
        return f"use {view}, which is the same memory"
    if array.flags.f_contiguous:
        return f"use .T{view}, which is the same memory"
    return f"use np.ascontiguousarray(x){view}{KEEP}"


def real_by_cast(array: np.ndarray, dtype: Any, keep: str = "") -> str:
    """How to convert to a real type, if that is possible."""
    if array.dtype == object and array.size > 0 and isinstance(array.flat[0], np.ndarray):
        return "; give the arrays that are in it: list(x.flat)"
    if array.dtype.fields:
        return "; give the array of each field: x[name]"
    try:
        with np.errstate(all="ignore"):
            array.astype(dtype)
    except Exception:  # whatever it holds cannot become numbers
        return ""
    return f"; use .astype(np.{dtype}){keep}"


def as_array(array: Any, name: str, written: bool) -> np.ndarray:
    """The array without its subclass, whose attributes could be anything."""
    if not issubclass(type(array), np.ndarray) or is_masked(array):
        raise TypeError(f"{name} must be a numpy.ndarray, got {describe(array)}{array_of(array, written)}")
    return np.asarray(array)


def check_is_no_container(x: Any, name: str, in_list: bool) -> None:
    """Raise if it is one, where a function takes an array."""
    if isinstance(x, list | tuple):
        how = "give all arrays in one list" if in_list and holds_arrays(x) else ""
    else:
        how = "use list(x.values())" if hasattr(type(x), "keys") else "use list(x)" if hasattr(x, "__next__") else ""
    if how:
        raise TypeError(f"{name} must be a numpy.ndarray, got a {type(x).__name__}; {how}")


def maps_of(arrays: Iterable[np.ndarray]) -> "list[mmap.mmap]":
    """The memory maps that arrays are in; empty if none is."""
    import mmap

    maps = {}
    for array in arrays:
        base: Any = array
        while base is not None and not isinstance(base, mmap.mmap):
            base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
        if base is not None:
            maps[id(base)] = base
    return list(maps.values())


def writeable_by(array: np.ndarray) -> str:
    if maps_of([array]):
        return "open the memory map with mode='r+', or with 'c' to keep the changes in memory"
    if not array.flags.owndata:
        try:
            array.view().flags.writeable = True
        except ValueError:  # what owns its memory does not allow that
            return f"use .copy(){KEEP}"
    return "set .flags.writeable = True"


def check_writable(param: Any, name: str, bfloat16: bool = False) -> None:
    """Raise unless the array may be updated in place. Is bfloat16 a type that it may have?"""
    array = as_array(param, name, True)
    if array.dtype.type not in (np.float32, np.float64) and not (bfloat16 and is_bfloat16(array.dtype)):
        complex_ = array.dtype.kind == "c"
        how = f"; {real_of_complex(array)}" if complex_ else real_by_cast(array, "float32", KEEP)
        allowed = "float32, float64 or bfloat16" if bfloat16 else "float32 or float64"
        if bfloat16 and array.dtype in (np.uint16, np.int16):
            how = HELD
        raise TypeError(f"{name} must be {allowed}, got {array.dtype}{how}")
    if not array.dtype.isnative:
        raise ValueError(
            f"{name} must have native byte order, got {array.dtype.str}; "
            f"use .astype({array.dtype.newbyteorder('=').str!r}){KEEP}"
        )
    if not array.flags.aligned:
        raise ValueError(f"{name} must be aligned in memory; use .copy(){KEEP}")
    check_in_place(array, name)


def is_dense(array: np.ndarray) -> bool:
    return array.transpose(axes_of(array.shape, array.strides)).flags.c_contiguous


def check_in_place(array: np.ndarray, name: str) -> None:
    """Raise unless all of the memory may be written, in one piece."""
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array; {writeable_by(array)}")
    if not is_dense(array):
        raise ValueError(
            f"{name} must be dense in memory (no gaps, axes in any order, none reversed), got strides {array.strides} "
            f"for shape {array.shape}; use np.ascontiguousarray{KEEP}"
        )


def check_like(state: Any, name: str, param: Any, param_name: str, by_row: bool = False) -> None:
    """Raise unless a state array matches its parameter. Has it one number for each row?"""
    check_writable(state, name)
    array, like = np.asarray(state), as_array(param, param_name, True)
    if array.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of {param_name}, {like.dtype}, got {array.dtype}")
    if by_row:
        check_table(param, param_name, f"{name} has a number for each row")
        if array.shape != like.shape[:1]:
            raise ValueError(
                f"{name} must have a number for each row of {param_name}, the shape {like.shape[:1]}, got {array.shape}"
            )
        return
    if array.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {param_name}, {like.shape}, got {array.shape}")
    if not lies_in(array, order_of(like)):
        raise ValueError(
            f"{name} must have the memory order of {param_name}; use np.copy(..., order='K') or np.zeros_like"
        )


def lies_in(array: np.ndarray, order: Order) -> bool:
    """Has a dense array this order? (It may have two, C and F.)"""
    return array.flags[order] if isinstance(order, str) else order_of(array) == order


def check_replacement(array: Any, name: str, dtype: str, shape: tuple[int, ...], order: Order) -> None:
    """Raise unless an array that could be a parameter is of this kind."""
    new = np.asarray(array)
    if new.dtype.name != dtype:
        raise TypeError(f"{name} must be {dtype}, as the one that it replaces, got {new.dtype}; make a new optimizer")
    if new.shape != shape:
        raise ValueError(
            f"{name} must have the shape of the one that it replaces, {shape}, got {new.shape}; make a new optimizer, "
            "and load this one's state_dict() with its arrays in the new shape"
        )
    if not lies_in(new, order):
        its = f"order {order}" if isinstance(order, str) else f"axes {order}, from the slowest to the fastest"
        raise ValueError(
            f"{name} must lie in memory as the one that it replaces, with {its}, got strides {new.strides}; copy it "
            f"into np.empty_like of that one{KEEP}"
        )


def check_table(param: Any, name: str, why: str) -> None:
    """Raise unless the array has rows that lie in one piece each."""
    array = as_array(param, name, True)
    if array.ndim == 0:
        raise ValueError(f"{name} has no rows ({why}), it is 0-d; use .reshape(1), which is the same memory")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be C-contiguous ({why}), got strides {array.strides} for shape {array.shape}; "
            f"use np.ascontiguousarray{KEEP}"
        )


def as_rows(rows: Any, grads: Any, param: Any, what: str, name: str, param_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows, and the gradient of each, as arrays that can be used, perhaps after a conversion."""
    check_table(param, param_name, "its gradient is of rows")
    if is_masked(rows):
        raise TypeError(
            f"{what} must be a numpy.ndarray, got a masked array; use rows.compressed() and grads[~rows.mask]"
        )
    if isinstance(rows, list | tuple):
        raise TypeError(f"{what} must be a numpy.ndarray, got a {type(rows).__name__}; use np.asarray(x, np.int64)")
    which = as_array(rows, what, False)
    if which.dtype.kind != "i" or which.dtype.itemsize < 4 or not which.dtype.isnative:
        how = "; use np.flatnonzero(rows)" if which.dtype.kind == "b" else real_by_cast(which, "int64")
        if which.dtype.kind == "f" and getattr(grads, "dtype", which.dtype).kind in "iu":
            how = "; give rows first, then gradients"
        raise TypeError(f"{what} must be int32 or int64 in native byte order, got {which.dtype}{how}")
    if which.ndim != 1:
        raise ValueError(f"{what} must have one axis, got the shape {which.shape}; use .reshape(-1)")
    array = real_gradient(grads, param, name)
    shape = (len(which), *np.shape(param)[1:])
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, for {len(which)} rows, got {array.shape}")
    return which, array


def as_gradient(grad: Any, param: Any, name: str, param_name: str) -> np.ndarray:
    """The gradient as an array that can be used, perhaps after a conversion."""
    array, shape = real_gradient(grad, param, name), np.shape(param)
    if array.shape != shape:
        some = len(shape) > 1 and array.shape[1:] == shape[1:] and len(array) < len(param)
        how = "; if it is that of some rows, give fastadam.Rows(rows, grads), or rows= to a function"
        raise ValueError(f"{name} must have the shape of {param_name}, {shape}, got {array.shape}{how if some else ''}")
    return array


def real_gradient(grad: Any, param: Any, name: str) -> np.ndarray:
    """An array of real numbers, of any shape."""
    like = np.asarray(param)
    if isinstance(grad, np.floating) and like.ndim == 0:
        grad = np.asarray(grad)
    array = as_array(grad, name, False)
    if array.dtype.type not in (np.float16, np.float32, np.float64, np.longdouble) and not is_bfloat16(array.dtype):
        dtype = "float32" if is_bfloat16(like.dtype) else like.dtype  # NumPy has no bfloat16
        if array.dtype.kind == "c":
            how = f"; use .real, or .view(np.{dtype}) if the parameter is such a view of complex numbers"
            if not array.dtype.isnative:
                how += " (after .astype to native byte order)"
        else:
            how = HELD if array.dtype in (np.uint16, np.int16) else real_by_cast(array, dtype)
        raise TypeError(f"{name} must be float16, bfloat16, float32, float64 or longdouble, got {array.dtype}{how}")
    return array


def copied_at_every_step(grad: np.ndarray, like: np.ndarray, name: str) -> str:
    """What a PerformanceWarning says."""
    or_float32 = " or float32" if is_bfloat16(like.dtype) else ""
    return (
        f"{name} is copied at every step: it is {describe(grad)}, strides {grad.strides}, and its parameter is "
        f"{describe(like)}, strides {like.strides}; make it with that dtype{or_float32} and order to save the copy"
    )


def level_of_caller() -> int:
    """The stacklevel of a warning that should point at the caller of this package, or of torch's or thinc's call."""
    level, frame = 1, sys._getframe().f_back
    while frame and str(frame.f_globals.get("__name__")).startswith(("fastadam.", "torch.", "thinc.")):
        level, frame = level + 1, frame.f_back
    return level


def overlap_error(name: str, other: str) -> ValueError:
    both = name.startswith("parameter") and other.startswith("parameter")
    once = "list one array once, with the sum of its gradients; " if both else ""
    return ValueError(f"{name} and {other} overlap in memory; {once}give each its own memory with .copy()")
