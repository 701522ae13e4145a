"""The floating-point control register. Imports nothing of fastadam, so that it can be read before that is imported."""

import ctypes
import platform
import sys


class FloatingPointState:
    """glibc's fenv_t on x86-64: the control register of SSE and AVX is its last word."""

    def __init__(self):
        assert (platform.machine(), sys.platform) == ("x86_64", "linux")
        self.libm = ctypes.CDLL("libm.so.6")

    def get(self):
        env = (ctypes.c_uint32 * 8)()
        self.libm.fegetenv(env)
        return env[7]

    def set(self, mxcsr):
        env = (ctypes.c_uint32 * 8)()
        self.libm.fegetenv(env)
        env[7] = mxcsr
        self.libm.fesetenv(env)
