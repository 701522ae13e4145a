# What other people's extensions call (csrc/api.c), where they look for it. docs/c-interface.md is for them.
from cpython.pycapsule cimport PyCapsule_New

cdef extern from "fastadam_api.h":
    const char *FASTADAM_CAPSULE

cdef extern from *:
    const char *FASTADAM_VERSION    # setup.py

_C_API = PyCapsule_New(<void *>fa_api_start(FASTADAM_VERSION), FASTADAM_CAPSULE, NULL)

# For numba and ctypes: where Cython puts the functions that a module exports, and named as there, by their types.
cdef const char *F32_TYPE = (
    b"int (int64_t, float *, float const *, float *, float *, int64_t, "
    b"double, double, double, double, double, int, int)")
cdef const char *F64_TYPE = (
    b"int (int64_t, double *, double const *, double *, double *, int64_t, "
    b"double, double, double, double, double, int, int)")
__pyx_capi__ = {
    "adam_f32": PyCapsule_New(<void *>fa_adam_f32, F32_TYPE, NULL),
    "adam_f64": PyCapsule_New(<void *>fa_adam_f64, F64_TYPE, NULL),
}
