/* Formats of gradients, state and parameters, for every instruction set; and what goes with them. */
#include <float.h>
#include <string.h>
#include "fastadam.h"

enum { FA_NAN = 0x7FC00000 }; /* every NaN that is stored */

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(x) PASTE(x, ISA_NAME)

#define EIGHT_BITS 1
#define ISA_NAME baseline
#define TARGET
#include "formats.inc"
#undef ISA_NAME
#undef TARGET

#if FA_X86_64
#define ISA_NAME avx2
#define TARGET FA_TARGET_AVX2
#include "formats.inc"
#undef ISA_NAME
#undef TARGET

#undef EIGHT_BITS
#define EIGHT_BITS 0 /* AVX2's are faster there: a group has only two registers, whose maximum is needed */
#define ISA_NAME avx512
#define TARGET FA_TARGET_AVX512
#include "formats.inc"
#undef ISA_NAME
#undef TARGET
#endif

static const struct {
    const fa_codec *codecs;
    fa_random random;
} table[FA_ISAS] = {
    [FA_BASELINE] = {codecs_baseline, random_baseline},
#if FA_X86_64
    [FA_AVX2] = {codecs_avx2, random_avx2},
    [FA_AVX512] = {codecs_avx512, random_avx512},
#endif
};

const fa_codec *fa_codec_of(fa_isa isa, fa_format format)
{
    const fa_codec *codec = &table[isa].codecs[format];
    return codec->decode || isa == FA_BASELINE ? codec : &table[isa - 1].codecs[format];
}

fa_format fa_format_for(fa_state_format state, int array)
{
    if (state == FA_STATE_8BIT)
        return array == FA_V ? FA_8BIT_V : FA_8BIT_M;
    return array == FA_V ? FA_BFLOAT16_V : FA_BFLOAT16_M;
}

fa_formats fa_formats_for(fa_isa isa, const fa_family *family, fa_state_format state, int master_bits)
{
    fa_formats f = {0};
    const int by_row = fa_kernel_of(isa, family->loop, FA_FLOAT32)->add_mean != NULL; /* one number a row is little anyway */
    if (master_bits)
        f.of[FA_PARAM] = fa_codec_of(isa, master_bits == 24 ? FA_SPLIT_24 : FA_SPLIT_32);
    if (state == FA_STATE_PLAIN || by_row)
        return f;
    for (int a = FA_M; a <= FA_W; a++)
        f.of[a] = fa_codec_of(isa, fa_format_for(state, a));
    f.random = table[isa].random;
    return f;
}

/* Any bit of the result depends on all of z (Stafford's mixer). */
static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

uint64_t fa_seed_of_step(uint64_t seed, int64_t step)
{
    return mix(seed + (uint64_t)step * 0x9E3779B97F4A7C15u);
}

void fa_random_bits(fa_random random, uint64_t seed, int64_t first, int64_t n, uint16_t *bits)
{
    int64_t begin = first % FA_CODED;
    random(bits, (uint32_t)(mix(seed + (uint64_t)(first - begin)) >> 32), (int)begin, (int)n);
}

/* ---- between steps ---- */

static char *place(const fa_codec *codec, const void *codes, int64_t at)
{
    return (char *)codes + at * codec->size;
}

static char *second_place(const fa_codec *codec, const void *second, int64_t at)
{
    return codec->group ? (char *)second + at / codec->group * codec->second_size : NULL;
}

/* What a loop of random rounding must add to round this number to nearest. */
static uint16_t to_nearest(fa_format format, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint16_t half = format == FA_BFLOAT16_M || format == FA_BFLOAT16_V ? (uint16_t)(0x7FFF + (bits >> 16 & 1)) : 0x8000;
    int is_m = format == FA_BFLOAT16_M || format == FA_8BIT_M;
    return is_m ? (uint16_t)(half << 8 | half >> 8) : half;
}

void fa_encode_array(fa_format format, const float *from, void *codes, void *second, int64_t n)
{
    const fa_codec *codec = fa_codec_of(FA_BASELINE, format);
    const int is_v = format == FA_BFLOAT16_V || format == FA_8BIT_V;
    for (int64_t at = 0, count; at < n; at += count) {
        float block[FA_CODED];
        uint16_t random[FA_CODED];
        count = n - at < FA_CODED ? n - at : FA_CODED;
        for (int64_t i = 0; i < count; i++) {
            const uint32_t nan = FA_NAN;
            float x = from[at + i];
            if (x != x)
                memcpy(&x, &nan, sizeof x);
            else if (is_v && x == 0) /* also -0 */
                x = 0;
            else if (format == FA_8BIT_V && x < FLT_MIN && x > -FLT_MIN) /* which have the same code */
                x = FLT_MIN;
            block[i] = x;
            random[i] = to_nearest(format, x);
        }
        codec->encode(block, place(codec, codes, at), second_place(codec, second, at), count, random);
    }
}

int64_t fa_low_bits(fa_format format, const float *from, const uint16_t *upper, void *low, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof bits);
        int64_t there = (int64_t)upper[i] << 16;
        if (from[i] != from[i]) { /* any NaN belongs to any other */
            bits = FA_NAN;
            there = (there & 0x7FFFFFFF) > 0x7F800000 ? bits : there;
        }
        int64_t rest = (int64_t)bits - there;
        if (rest < -0x8000 || rest > 0x8000)
            return i;
        if (format == FA_SPLIT_32) {
            ((int16_t *)low)[i] = (int16_t)(rest > 0x7FFF ? 0x7FFF : rest);
        } else {
            int64_t nearest = (rest + 0x7F + (rest >> 8 & 1)) >> 8;
            ((int8_t *)low)[i] = (int8_t)(nearest > 0x7F ? 0x7F : nearest);
        }
    }
    return -1;
}

/* Numbers that are stored, and others. */
void fa_exchange(const fa_codec *codec, void *codes, void *second, float *others, int64_t n)
{
    for (int64_t at = 0, count; at < n; at += count) {
        float block[FA_CODED];
        count = n - at < FA_CODED ? n - at : FA_CODED;
        codec->decode(block, place(codec, codes, at), second_place(codec, second, at), count);
        codec->encode(others + at, place(codec, codes, at), second_place(codec, second, at), count, NULL);
        memcpy(others + at, block, (size_t)count * sizeof *block);
    }
}
