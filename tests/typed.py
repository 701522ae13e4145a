"""What a type checker must find wrong. CI runs mypy here, which complains about a comment that is not needed."""

import numpy as np

import fastadam

opt = fastadam.AdamW(np.ones(2), lr=0.1, max_norm=1.0)
opt.max_norm, opt.lr, decay = 2.0, 0.2, opt.weight_decay
opt.max_nrom = 1.0  # type: ignore[attr-defined]
print(opt.learning_rate)  # type: ignore[attr-defined]
print(fastadam.RMSProp)  # type: ignore[attr-defined]
fastadam.SGD(np.ones(2), max_nrom=1.0)  # type: ignore[call-arg]
fastadam.adam_update([np.ones(2)], [np.ones(2)], [np.ones(2)], (np.ones(2),), [1], rows=[None], threads=1)
fastadam.sgd_update(np.ones(2), np.ones(2), 1, nestrov=True)  # type: ignore[call-arg]
