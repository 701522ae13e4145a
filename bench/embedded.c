/* A loop of steps through the public C interface, as a compiled training loop calls it (bench/embedded.py). */
#include "fastadam_api.h"

int through_table(const fastadam_api *api, const fastadam_options *options, fastadam_array *array, int64_t turns)
{
    int result = 0;
    for (int64_t i = 0; i < turns && result >= 0; i++) {
        array->step++;
        result = api->update(options, array, 1, 1.0, 0);
    }
    return result;
}

typedef int adam_f32(int64_t, float *, const float *, float *, float *, int64_t, double, double, double, double, double, int,
                     int);

int through_scalars(adam_f32 *adam, const fastadam_options *o, fastadam_array *a, int64_t turns)
{
    int result = 0;
    for (int64_t i = 0; i < turns && result >= 0; i++)
        result = adam(a->n, a->param, a->grad, a->state[0], a->state[1], ++a->step, o->lr, o->beta1, o->beta2, o->eps,
                      o->weight_decay, 0, 0);
    return result;
}
