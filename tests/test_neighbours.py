"""Beside other packages with threads of their own: scikit-learn, SciPy and joblib (-m sklearn), torch (-m torch)."""

import pytest
from helpers import run_python

TRAIN = """
import numpy as np, fastadam

def train(steps=40):
    '''Steps between matrix products, by default and on ordered threads: the bits of one thread.'''
    results = []
    for threads in None, 2, 1:
        rng = np.random.default_rng(0)
        w = rng.standard_normal((512, 512)).astype(np.float32)
        opt = fastadam.Adam(w, threads=threads)
        for _ in range(steps):
            opt.step((w @ w[:, :1]) @ w[:1])
        results.append(w)
    assert all(np.array_equal(result, results[0]) for result in results)
    return results[0]
"""
OTHERS = {
    "sklearn": "import sklearn.neural_network, sklearn.ensemble, scipy.linalg; import numpy as np\n"
    "sklearn.ensemble.HistGradientBoostingClassifier(max_iter=2).fit(np.eye(40), [0, 1] * 20)",
    "torch": "import torch; torch.ones(300, 300) @ torch.ones(300, 300)",
}
PACKAGES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in OTHERS]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("order", ["before", "after"])
def test_imported_before_and_after(package, order):
    lines = [OTHERS[package], TRAIN]
    first, second = lines if order == "before" else lines[::-1]
    run_python(f"""
{first}
{second}
alone = train()
{OTHERS[package]}
with fastadam.share_threads_with_blas():
    assert np.array_equal(train(), alone)
    {OTHERS[package].splitlines()[-1] if package == "sklearn" else "torch.ones(300, 300) @ torch.ones(300, 300)"}
assert np.array_equal(train(), alone)
""")


@pytest.mark.sklearn
def test_scipys_own_openblas_computes_on_the_same_team():
    run_python("""
import numpy as np, scipy.linalg, fastadam
a = np.random.default_rng(0).standard_normal((500, 500))
product, p = a @ a, np.ones(1 << 20)
with fastadam.share_threads_with_blas() as sharing:
    assert [entry["shared"] for entry in sharing.libraries] == [True, True], sharing
    assert len(fastadam.config()["blas_shared"]) == 2
    for _ in range(20):
        assert np.allclose(scipy.linalg.blas.dgemm(1.0, a, a), product) and np.allclose(a @ a, product)
        assert np.allclose(a @ scipy.linalg.solve(a, a), a)
        fastadam.Adam(p, threads=2).step(p.copy())
        assert fastadam.config()["steps_on"] == "fastadam"
assert fastadam.config()["blas_shared"] == []
assert np.allclose(scipy.linalg.blas.dgemm(1.0, a, a), product)
""")


@pytest.mark.sklearn
@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_in_joblibs_workers(backend):
    """The same bits everywhere; loky's workers are told how many threads each may have: no oversubscription."""
    run_python(f"""{TRAIN}
import joblib

def work():
    p = np.ones(1 << 20, np.float32)
    grad, opt, used = p.copy(), fastadam.Adam(p), set()
    for _ in range(40):
        opt.step(grad)
        used.add(opt.threads_used)
    return fastadam.get_num_threads(), max(used), train()

here = train()
for bound, used, result in joblib.Parallel(2, backend={backend!r})(joblib.delayed(work)() for _ in range(4)):
    assert used <= bound, (used, bound)
    assert bound == max(1, fastadam.get_num_threads() // 2) or {backend!r} != "loky"
    assert np.array_equal(result, here)
""")
