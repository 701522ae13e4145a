/* ABI 1, as it was published, on 64 bits. Numbers here never change: new members stand at the end of their struct, and get
 * a line here. (tests/test_c_interface.py) */
#include "fastadam_api.h"

_Static_assert(FASTADAM_ABI == 1 && FASTADAM_FLOAT32 == 32 && FASTADAM_FLOAT64 == 64, "constants");
_Static_assert(sizeof(fastadam_options) == 128, "options");
_Static_assert(sizeof(fastadam_array) == 72, "array");
_Static_assert(sizeof(fastadam_api) == 56, "table");

#define AT(type, member, place) _Static_assert(offsetof(type, member) == place, #member)
AT(fastadam_options, size, 0);
AT(fastadam_options, lr, 8);
AT(fastadam_options, beta1, 16);
AT(fastadam_options, beta2, 24);
AT(fastadam_options, eps, 32);
AT(fastadam_options, weight_decay, 40);
AT(fastadam_options, eps_root, 48);
AT(fastadam_options, momentum, 56);
AT(fastadam_options, dampening, 64);
AT(fastadam_options, alpha, 72);
AT(fastadam_options, lr_decay, 80);
AT(fastadam_options, momentum_decay, 88);
AT(fastadam_options, decoupled_weight_decay, 96);
AT(fastadam_options, amsgrad, 100);
AT(fastadam_options, maximize, 104);
AT(fastadam_options, bias_correction, 108);
AT(fastadam_options, eps_hat, 112);
AT(fastadam_options, nesterov, 116);
AT(fastadam_options, centered, 120);
AT(fastadam_options, rule, 124);
AT(fastadam_array, param, 0);
AT(fastadam_array, grad, 8);
AT(fastadam_array, state, 16);
AT(fastadam_array, n, 40);
AT(fastadam_array, dtype, 48);
AT(fastadam_array, step, 56);
AT(fastadam_array, product, 64);
AT(fastadam_api, abi, 0);
AT(fastadam_api, size, 4);
AT(fastadam_api, version, 8);
AT(fastadam_api, options, 16);
AT(fastadam_api, states, 24);
AT(fastadam_api, update, 32);
AT(fastadam_api, sum_squares, 40);
AT(fastadam_api, explain, 48);

int layout_was_checked;
