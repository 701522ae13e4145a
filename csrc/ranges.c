/* Ranges of memory that is written: does anything overlap them? */
#include <stdlib.h>
#include "fastadam.h"

static int by_begin(const void *a, const void *b)
{
    uintptr_t x = ((const fa_range *)a)->begin, y = ((const fa_range *)b)->begin;
    return (x > y) - (x < y);
}

const fa_range *fa_ranges_sort(fa_range *ranges, int64_t count)
{
    qsort(ranges, (size_t)count, sizeof *ranges, by_begin);
    for (int64_t i = 1; i < count; i++)
        if (ranges[i].begin < ranges[i - 1].end)
            return &ranges[i - 1];
    return NULL;
}

const fa_range *fa_ranges_find(const fa_range *ranges, int64_t count, uintptr_t begin, uintptr_t end)
{
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (ranges[middle].end <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && ranges[low].begin < end && begin < end ? &ranges[low] : NULL;
}
