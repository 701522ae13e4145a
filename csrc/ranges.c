/* Ranges of memory that is written: does anything overlap them? */
#include <string.h>
#include "fastadam.h"

/* Where the ascending run ends that begins there. */
static int64_t end_of_run(const fa_range *ranges, int64_t at, int64_t count)
{
    do
        at++;
    while (at < count && ranges[at - 1].begin <= ranges[at].begin);
    return at;
}

static void merge(fa_range *to, const fa_range *a, const fa_range *end_of_a, const fa_range *b, const fa_range *end_of_b)
{
    while (a < end_of_a && b < end_of_b)
        *to++ = b->begin < a->begin ? *b++ : *a++;
    memcpy(to, a, (size_t)((const char *)end_of_a - (const char *)a));
    memcpy(to + (end_of_a - a), b, (size_t)((const char *)end_of_b - (const char *)b));
}

/* By merging ascending runs: arrays were mostly made one after the other, and are then few of them. */
const fa_range *fa_ranges_sort(fa_range *ranges, fa_range *room, int64_t count)
{
    fa_range *from = ranges, *to = room;
    while (count > 1 && end_of_run(from, 0, count) < count) {
        for (int64_t begin = 0, middle, end; begin < count; begin = end) {
            middle = end_of_run(from, begin, count);
            end = middle < count ? end_of_run(from, middle, count) : count;
            merge(to + begin, from + begin, from + middle, from + middle, from + end);
        }
        fa_range *merged = to;
        to = from;
        from = merged;
    }
    if (from != ranges)
        memcpy(ranges, from, (size_t)count * sizeof *ranges);
    for (int64_t i = 1; i < count; i++)
        if (ranges[i].begin < ranges[i - 1].end)
            return &ranges[i - 1];
    return NULL;
}

const fa_range *fa_ranges_find(const fa_range *ranges, int64_t count, uintptr_t begin, uintptr_t end, int64_t *near)
{
    int64_t low = 0, high = count;
    if ((*near == 0 || ranges[*near - 1].end <= begin) && (*near == count || ranges[*near].end > begin))
        low = high = *near;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (ranges[middle].end <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    *near = low;
    return low < count && ranges[low].begin < end && begin < end ? &ranges[low] : NULL;
}
