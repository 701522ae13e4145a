/* From what the user chose to what the loops read: float64, once for each group and step.
 * `pow` is what Python's float ** int calls, so reference.py finds the same factors. */
#include <math.h>
#include "fastadam.h"

fa_rule fa_adam_rule(const fa_adam_options *o)
{
    if (o->weight_decay == 0.0)
        return o->amsgrad ? FA_ADAM_AMSGRAD : FA_ADAM;
    if (o->decoupled)
        return o->amsgrad ? FA_ADAM_DECOUPLED_AMSGRAD : FA_ADAM_DECOUPLED;
    return o->amsgrad ? FA_ADAM_L2_AMSGRAD : FA_ADAM_L2;
}

void fa_adam_factors_at(int64_t step, const fa_adam_options *o, double grad_scale, fa_adam_factors *out)
{
    fa_fp_state saved;
    fa_fp_default(&saved);

    double bc1 = o->bias_correction ? 1.0 - pow(o->beta1, (double)step) : 1.0;
    double bc2 = o->bias_correction ? 1.0 - pow(o->beta2, (double)step) : 1.0;

    out->s = o->maximize ? -grad_scale : grad_scale;
    out->wd = o->weight_decay;
    out->d = 1.0 - o->lr * o->weight_decay;
    out->b1 = o->beta1;
    out->c1 = 1.0 - o->beta1;
    out->b2 = o->beta2;
    out->c2 = 1.0 - o->beta2;
    if (o->eps_hat) {
        out->step_size = o->lr * sqrt(bc2) / bc1;
        out->inv_bc2 = 1.0;
    } else {
        out->step_size = o->lr / bc1;
        out->inv_bc2 = 1.0 / bc2;
    }
    out->eps_root = o->eps_root;
    out->eps = o->eps;

    fa_fp_restore(&saved);
}
