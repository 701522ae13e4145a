/* Runs each loop that valgrind can execute once, over argv[1] elements, for bench/instructions.py to count. */
#include <stdlib.h>
#include "fastadam.h"

enum { MOST = 4096 };

static union {
    float f32[MOST];
    double f64[MOST];
} data[FA_ARRAYS];

/* The same positive, normal numbers for every kernel; which of v and vmax is larger varies along the array. */
static void fill(fa_real real, int64_t n)
{
    for (int array = 0; array < FA_ARRAYS; array++)
        for (int64_t i = 0; i < n; i++) {
            double x = 0.5 + (double)(i * 37 % 101 * (array + 1) % 101) / 101;
            if (real == FA_FLOAT32)
                data[array].f32[i] = (float)x;
            else
                data[array].f64[i] = x;
        }
}

/* Formats, in blocks, as steps have them. */
static void run_formats(fa_isa isa, int64_t n)
{
    static uint16_t random[FA_CODED];
    const fa_formats formats = fa_formats_for(isa, fa_family_named("Adam"), FA_STATE_BFLOAT16, 0);
    float *numbers = data[0].f32;
    void (*last)(float *, const void *, const void *, int64_t) = NULL;
    fill(FA_FLOAT32, n);
    for (int64_t at = 0; at < n; at += FA_CODED)
        formats.random(random, 1, 0, n - at < FA_CODED ? (int)(n - at) : FA_CODED);
    for (int format = FA_FLOAT16; format < FA_FORMATS; format++) {
        const fa_codec *codec = fa_codec_of(isa, format);
        for (int64_t at = 0, count; at < n; at += count) {
            count = n - at < FA_CODED ? n - at : FA_CODED;
            if (codec->encode)
                codec->encode(numbers + at, &data[1], &data[2], count, random);
            if (codec->decode != last) /* several formats share one */
                codec->decode(data[3].f32, &data[1], &data[2], count);
        }
        last = codec->decode;
    }
}

int main(int argc, char **argv)
{
    int64_t n = argc == 2 ? atoll(argv[1]) : 0;
    if (n < 1 || n > MOST)
        return 2;

    fa_coefficients coefficients = {.s = 1, .wd = 0.1, .d = 0.9999, .b1 = 0.9, .c1 = 0.1, .b2 = 0.999, .c2 = 1e-3,
                                    .step_size = 1e-3, .inv_bc2 = 1, .eps = 1e-8, .grad_size = 1e-4};
    double squares[16] = {0};
    fa_wrap wrap = {.s = 1, .mean = 0.5, .limit = 0.7, .decay = 0.9, .rest = 0.1};
    fa_task task = {.n = n};
    for (int array = 0; array < FA_ARRAYS; array++)
        task.array[array] = &data[array];
    for (int isa = FA_BASELINE; isa <= FA_AVX2 && fa_isa_available(isa); isa++) {
        run_formats(isa, n);
        for (int rule = 0; rule < FA_ALL_RULES; rule++)
            for (int real = 0; real < FA_REALS; real++) {
                double sums[MOST / FA_SQUARES];
                task.kernel = fa_kernel_of(isa, rule, real);
                task.coefficients = rule < FA_GRADIENT      ? (void *)&coefficients
                                    : rule < FA_SUM_SQUARES ? (void *)&wrap
                                                            : (void *)sums;
                fill(real, n);
                if (task.kernel->run)
                    task.kernel->run(&task, 0, n);
                if (task.kernel->add_squares)
                    task.kernel->add_squares(&task, 0, n, squares);
            }
    }
    return 0;
}
