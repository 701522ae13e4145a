/* From what the user chose to what the loops read: in float64, once for each group and counter.
 * Python's float ** calls `pow`, too, so reference/rules.py finds the same coefficients. */
#include <math.h>
#include <string.h>
#include "fastadam.h"

#define HYPER(name, kind) {#name, kind, offsetof(fa_options, name)}
const fa_hyper fa_hypers[] = {
    HYPER(lr, FA_MAGNITUDE),
    {"betas", FA_BETAS, offsetof(fa_options, beta1)},
    HYPER(eps, FA_MAGNITUDE),
    HYPER(eps_root, FA_MAGNITUDE),
    HYPER(weight_decay, FA_MAGNITUDE),
    HYPER(decoupled_weight_decay, FA_FLAG),
    HYPER(amsgrad, FA_FIXED_FLAG),
    HYPER(maximize, FA_FLAG),
    HYPER(bias_correction, FA_FLAG),
    HYPER(eps_hat, FA_FLAG),
    HYPER(momentum, FA_MAGNITUDE),
    HYPER(dampening, FA_MAGNITUDE),
    HYPER(nesterov, FA_FLAG),
    HYPER(alpha, FA_BETA),
    HYPER(centered, FA_FIXED_FLAG),
    HYPER(lr_decay, FA_MAGNITUDE),
    HYPER(initial_accumulator_value, FA_INITIAL),
    HYPER(momentum_decay, FA_MAGNITUDE),
    HYPER(state_dtype, FA_STATE_DTYPE),
    HYPER(master_bits, FA_MASTER_BITS),
    {0},
};
_Static_assert(offsetof(fa_options, beta2) == offsetof(fa_options, beta1) + sizeof(double), "a pair is read as one");

static double bias_correction(double beta, int64_t step, const fa_options *o)
{
    return o->bias_correction ? 1.0 - pow(beta, (double)step) : 1.0;
}

static int adam_flags(const fa_options *o)
{
    return o->amsgrad ? FA_AMSGRAD : 0;
}

static void adam(int64_t step, const fa_options *o, fa_coefficients *f)
{
    double bc1 = bias_correction(o->beta1, step, o), bc2 = bias_correction(o->beta2, step, o);
    f->step_size = o->eps_hat ? o->lr * sqrt(bc2) / bc1 : o->lr / bc1;
    f->inv_bc2 = o->eps_hat ? 1.0 : 1.0 / bc2;
    f->eps_root = o->eps_root;
}

static int sgd_flags(const fa_options *o)
{
    return o->momentum == 0.0 ? 0 : o->nesterov ? FA_NESTEROV : FA_MOMENTUM;
}

static void sgd(int64_t step, const fa_options *o, fa_coefficients *f)
{
    f->b1 = o->momentum;
    f->c1 = step == 1 ? 1.0 : 1.0 - o->dampening; /* the first gradient is the buffer */
}

static int rmsprop_flags(const fa_options *o)
{
    return (o->momentum == 0.0 ? 0 : FA_MOMENTUM) | (o->centered ? FA_CENTERED : 0);
}

static void rmsprop(int64_t step, const fa_options *o, fa_coefficients *f)
{
    (void)step;
    f->b1 = o->momentum;
    f->b2 = o->alpha;
    f->c2 = 1.0 - o->alpha;
}

/* RMSprop's loop with a sum in place of the average. */
static void adagrad(int64_t step, const fa_options *o, fa_coefficients *f)
{
    f->b2 = f->c2 = 1.0;
    f->step_size = o->lr / (1.0 + (double)(step - 1) * o->lr_decay);
}

static void nadam(int64_t step, const fa_options *o, fa_coefficients *f)
{
    double t = (double)step;
    double mu = o->beta1 * (1.0 - 0.5 * pow(0.96, t * o->momentum_decay));
    double mu_next = o->beta1 * (1.0 - 0.5 * pow(0.96, (t + 1.0) * o->momentum_decay));
    f->product = f->product * mu;
    f->grad_size = o->lr * (1.0 - mu) / (1.0 - f->product);
    f->step_size = o->lr * mu_next / (1.0 - f->product * mu_next);
    f->inv_bc2 = 1.0 / (1.0 - pow(o->beta2, t));
}

/* Adam's loop. While the variance of the adaptive rate is infinite, the denominator is made 1. */
static void radam(int64_t step, const fa_options *o, fa_coefficients *f)
{
    double t = (double)step, power = pow(o->beta2, t);
    double bc1 = 1.0 - pow(o->beta1, t), bc2 = 1.0 - power;
    double most = 2.0 / (1.0 - o->beta2) - 1.0, now = most - 2.0 * t * power / bc2;
    if (now > 5.0) {
        double rect = sqrt((now - 4.0) * (now - 2.0) * most / ((most - 4.0) * (most - 2.0) * now));
        f->step_size = o->lr * rect * sqrt(bc2) / bc1;
        f->inv_bc2 = 1.0;
    } else {
        f->step_size = o->lr / bc1;
        f->inv_bc2 = 0.0;
        f->eps = 1.0;
    }
}

static void adamax(int64_t step, const fa_options *o, fa_coefficients *f)
{
    f->step_size = o->lr / (1.0 - pow(o->beta1, (double)step));
}

static const fa_family families[] = {
    {"Adam", {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}, FA_ADAM, adam_flags, adam},
    {"SGD", {"momentum_buffer"}, FA_SGD, sgd_flags, sgd},
    {"RMSprop", {"grad_avg", "square_avg", "momentum_buffer"}, FA_RMSPROP, rmsprop_flags, rmsprop},
    {"Adagrad", {NULL, "sum"}, FA_RMSPROP, NULL, adagrad},
    {"NAdam", {"exp_avg", "exp_avg_sq"}, FA_NADAM, NULL, nadam},
    {"RAdam", {"exp_avg", "exp_avg_sq"}, FA_ADAM, NULL, radam},
    {"Adamax", {"exp_avg", "exp_inf"}, FA_ADAMAX, NULL, adamax},
    {"RowAdagrad", {NULL, "sum"}, FA_ROW_ADAGRAD, NULL, adagrad},
};

const fa_family *fa_family_named(const char *name)
{
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++)
        if (strcmp(families[i].name, name) == 0)
            return &families[i];
    return NULL;
}

fa_rule fa_rule_of(const fa_family *family, const fa_options *o)
{
    int decay = o->weight_decay == 0.0 ? 0 : o->decoupled_weight_decay ? FA_DECOUPLED : FA_L2;
    return family->loop | decay | (family->flags ? family->flags(o) : 0);
}

double fa_scale_for(const fa_options *o, double grad_scale)
{
    return o->maximize ? -grad_scale : grad_scale;
}

void fa_coefficients_at(const fa_family *family, int64_t step, const fa_options *o, double grad_scale, double product,
                        fa_coefficients *out)
{
    fa_fp_state saved;
    fa_fp_default(&saved);
    *out = (fa_coefficients){
        .s = fa_scale_for(o, grad_scale),
        .wd = o->weight_decay,
        .d = 1.0 - o->lr * o->weight_decay,
        .b1 = o->beta1,
        .c1 = 1.0 - o->beta1,
        .b2 = o->beta2,
        .c2 = 1.0 - o->beta2,
        .step_size = o->lr,
        .eps = o->eps,
        .product = product,
    };
    if (family->coefficients)
        family->coefficients(step, o, out);
    fa_fp_restore(&saved);
}
