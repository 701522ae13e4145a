/* What compilers, processors and systems have. No other file asks which of them it is on. */
#ifndef FASTADAM_PLATFORM_H
#define FASTADAM_PLATFORM_H

/* ---- the compiler */

#ifndef __GNUC__ /* clang says so, too */
#error "fastadam needs gcc or clang: it uses their attributes and atomics"
#endif
/* setup.py switches these off behind the user's flags, where a later flag can. */
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(__NO_SIGNED_ZEROS__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "fastadam promises bits that -ffast-math and its parts break: remove them from CFLAGS"
#endif
#include <float.h>
#include <stdint.h>
#if FLT_EVAL_METHOD != 0
#error "fastadam promises bits that wider arithmetic breaks: add -msse2 -mfpmath=sse to CFLAGS"
#endif
_Static_assert((int)16777217.0 == 16777217, "fastadam promises bits that -fsingle-precision-constant breaks: remove it");

#ifdef __clang__
#define FA_NOINLINE __attribute__((noinline))
#else /* neither inlined nor copied under another name, which tests would not find */
#define FA_NOINLINE __attribute__((noinline, noclone))
#endif

/* How the loops between these are compiled. With them gcc does not split the ?: of an element by the answers to those
 * before it, to vectorise each case with masks of its own: Adam's AVX-512 loop with AMSGrad had 62 instructions instead
 * of 36. And two vectors or more are computed side by side, so that neither root nor quotient waits for the other.
 * gcc 11 and older would forget some flags of the command line here. */
#if defined(__clang__) || __GNUC__ < 12
#define FA_LOOPS_BEGIN
#define FA_LOOPS_END
#else
#define FA_LOOPS_BEGIN                                                                                       \
    _Pragma("GCC push_options")                                                                              \
    _Pragma("GCC optimize (\"no-thread-jumps,unroll-loops,schedule-insns,sched-pressure\")")
#define FA_LOOPS_END _Pragma("GCC pop_options")
#endif

static inline void fa_prefetch(const void *address)
{
    __builtin_prefetch(address);
}

/* gcc takes a function that only prefetches for one without effects, and leaves out calls of it: it must be inlined. */
static inline __attribute__((always_inline)) void fa_fetch(const void *from, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += 64)
        fa_prefetch((const char *)from + at);
}

/* Atomic, in one order for all threads. */
#define fa_load(from) __atomic_load_n(from, __ATOMIC_SEQ_CST)
#define fa_store(to, value) __atomic_store_n(to, value, __ATOMIC_SEQ_CST)
#define fa_add(to, value) __atomic_add_fetch(to, value, __ATOMIC_SEQ_CST)
#define fa_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

static inline int fa_claim(int *flag) /* from 0 to 1, by one caller alone */
{
    int no = 0;
    return __atomic_compare_exchange_n(flag, &no, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* ---- the processor */

#ifdef __x86_64__
#define FA_X86_64 1
#include <xmmintrin.h>

#define FA_TARGET_AVX2 __attribute__((target("avx2")))
#ifdef __clang__
#define FA_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else /* gcc's generic tuning would use only half of each register */
#define FA_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif

/* These built-ins also ask whether the operating system saves the registers. */
static inline int fa_cpu_has_avx2(void)
{
    return __builtin_cpu_supports("avx2") != 0;
}

static inline int fa_cpu_has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

/* Only MXCSR governs the arithmetic used here; <fenv.h> would also store and load the x87 state, ten times slower. */
typedef struct {
    unsigned mxcsr;
} fa_fp_state;

static inline void fa_fp_read(fa_fp_state *state)
{
    state->mxcsr = _mm_getcsr();
}

static inline void fa_fp_write(const fa_fp_state *state)
{
    _mm_setcsr(state->mxcsr);
}

static inline void fa_fp_reset(void)
{
    _mm_setcsr(0x1F80); /* the value at reset: all exceptions masked, nearest, no FTZ, no DAZ */
}

/* Has a result been subnormal, in this thread, since the share began or this was forgotten? */
static inline int fa_underflowed(void)
{
    return (_mm_getcsr() & _MM_EXCEPT_UNDERFLOW) != 0;
}

static inline void fa_forget_underflow(void)
{
    _mm_setcsr(_mm_getcsr() & ~(unsigned)_MM_EXCEPT_UNDERFLOW);
}

static inline void fa_relax(void) /* between two looks at what another thread writes */
{
    _mm_pause();
}

#else
#define FA_X86_64 0
#include <fenv.h>

static inline int fa_cpu_has_avx2(void) { return 0; }
static inline int fa_cpu_has_avx512(void) { return 0; }
typedef fenv_t fa_fp_state;

static inline void fa_fp_read(fa_fp_state *state) { fegetenv(state); }
static inline void fa_fp_write(const fa_fp_state *state) { fesetenv(state); }
static inline void fa_fp_reset(void) { fesetenv(FE_DFL_ENV); }
static inline int fa_underflowed(void) { return 0; } /* subnormal numbers are as fast as others */
static inline void fa_forget_underflow(void) {}
#ifdef __aarch64__
static inline void fa_relax(void) { __asm__ volatile("isb"); }
#else
static inline void fa_relax(void) {}
#endif
#endif

/* ---- the system */

#ifdef _WIN32
#define FA_POSIX 0 /* has it threads, locks and forks of POSIX? */
#else
#define FA_POSIX 1
#endif

#ifdef FA_NEEDS_SYSTEM /* threads.h says so, before any header of the system */

#if !FA_POSIX
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

static inline double fa_now(void) /* seconds since some moment */
{
    LARGE_INTEGER ticks, a_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&a_second);
    return (double)ticks.QuadPart / (double)a_second.QuadPart;
}

#else
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

static inline double fa_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline int64_t fa_nanoseconds(void) /* the same clock; no floating point, which leaves flags */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A read-write lock. With glibc a writer does not wait for readers that come later. */
static inline void fa_rwlock_init(pthread_rwlock_t *lock)
{
    pthread_rwlockattr_t kind;
    pthread_rwlockattr_init(&kind);
#ifdef __GLIBC__
    pthread_rwlockattr_setkind_np(&kind, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
    pthread_rwlock_init(lock, &kind);
    pthread_rwlockattr_destroy(&kind);
}

/* The number of the calling thread, or 0; and does the system still count that thread of this process? */
#ifdef __linux__
#include <sys/syscall.h>
static inline long fa_thread(void)
{
    return syscall(SYS_gettid);
}

static inline int fa_thread_counts(long thread)
{
    return syscall(SYS_tgkill, getpid(), thread, 0) == 0;
}
#else
static inline long fa_thread(void) { return 0; }
static inline int fa_thread_counts(long thread) { (void)thread; return 0; }
#endif
#endif

#ifdef __GLIBC__
#define FA_AFFINITY 1 /* can we choose a thread's CPUs, and ask which one it is on? */
static inline int fa_cpu(void) { return sched_getcpu(); }
#else
#define FA_AFFINITY 0
static inline int fa_cpu(void) { return -1; }
#endif

#ifdef __ELF__
#define FA_WEAK __attribute__((weak)) /* a function whose address is 0 if nobody has it */
#endif

#endif
#endif
