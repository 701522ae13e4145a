"""What an error tells you to do works when you do it."""

import mmap

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits

import fastadam


def refused(params, match, error=TypeError):
    with pytest.raises(error, match=match):
        fastadam.SGD(params, lr=0.5)


def trained(array):
    """One step from one with a gradient of one: a half."""
    fastadam.SGD(array, lr=0.5).step(np.ones_like(array))
    return array


@pytest.mark.parametrize(
    ("make", "match", "view"),
    [
        (lambda: np.ones((2, 3), np.complex64), r"use .view\(np.float32\), which", lambda z: z.view(np.float32)),
        (lambda: np.ones((2, 3), complex, "F"), r"use .T.view\(np.float64\), which", lambda z: z.T.view(np.float64)),
        (lambda: np.array(1j), r"use .reshape\(1\).view\(np.float64\)", lambda z: z.reshape(1).view(np.float64)),
    ],
)
def test_complex_parameters_are_trained_in_place_by_a_view(make, match, view):
    """.astype(np.float32), the way out for other types, would lose the imaginary part."""
    z = make()
    refused(z, match)
    before = z.copy()
    trained(view(z))
    assert np.array_equal(z, before - (0.5 + 0.5j))


def test_complex_parameters_that_have_gaps_or_are_longer_are_copied():
    z = np.ones((4, 6), complex)[::2, ::2]
    refused(z, r"use np.ascontiguousarray\(x\).view\(np.float64\), and keep the new array")
    assert trained(np.ascontiguousarray(z).view(np.float64)).shape == (2, 6)
    z = np.ones(3, np.clongdouble)
    refused(z, r"use .astype\(np.complex128\).view\(np.float64\), and keep the new array")
    assert trained(z.astype(np.complex128).view(np.float64)).shape == (6,)


@pytest.mark.parametrize("dtype", [">c8", ">c16"])
def test_complex_numbers_of_the_other_byte_order_are_converted(dtype):
    z = np.full(3, 1 + 2j, np.dtype(dtype))
    native = z.dtype.newbyteorder("=")
    refused(z, rf"use .astype\(np.{native}\).view\(np.float{4 * native.itemsize}\), and keep the new array")
    trained(z.astype(native).view(f"f{native.itemsize // 2}"))
    opt = fastadam.SGD(np.zeros(6), lr=1.0)
    with pytest.raises(TypeError, match=r"use .real, or .view\(np.float64\) .*\(after .astype to native byte order\)"):
        opt.step(z)


@pytest.mark.parametrize("x", [np.zeros(2, "V4"), np.array(["a"]), np.array([b"a"]), np.array(["a", None], object)])
def test_no_cast_is_advised_where_none_works(x):
    with pytest.raises(TypeError, match=r"must be float32, float64 or bfloat16, got [^;]*$"):
        fastadam.SGD(x)
    with pytest.raises(TypeError, match=r"longdouble, got [^;]*$"):
        fastadam.SGD(np.ones(x.shape)).step(x)


def test_complex_gradients_are_given_as_their_parameters():
    z, g = np.ones(3, np.complex64), np.full(3, 1 + 2j, np.complex64)
    opt = fastadam.SGD(z.view(np.float32), lr=1.0)
    with pytest.raises(TypeError, match=r"use .real, or .view\(np.float32\) if the parameter is such a view"):
        opt.step(g)
    opt.step(g.view(np.float32))
    assert np.array_equal(z, np.full(3, -2j))


class Dataset:
    """An array of another library, which is converted by a copy: h5py's, JAX's."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array.copy()


class Sparse:
    """scipy.sparse's matrices have no __array__."""

    def toarray(self):
        return np.ones(3)


def test_arrays_of_other_libraries_are_parameters_as_copies_that_are_kept():
    x = Dataset(np.ones(3))
    refused(x, r"got a Dataset; use np.array\(x\), and keep the new array: it is the one that is updated$")
    kept = trained(np.array(x))
    assert np.array_equal(kept, np.full(3, 0.5)) and np.array_equal(x.array, np.ones(3))


def test_gradients_of_other_libraries_are_converted():
    p = np.ones(3)
    opt = fastadam.SGD(p, lr=0.25)
    for grad, match, convert in (
        (Dataset(np.ones(3)), r"got a Dataset; use np.asarray\(x\)$", np.asarray),
        (Sparse(), r"got a Sparse; use .toarray\(\), or for some rows of a table fastadam.Rows", Sparse.toarray),
        (np.ma.ones(3), r"got a masked array; use .filled\(0\)$", lambda x: x.filled(0)),
    ):
        with pytest.raises(TypeError, match=match):
            opt.step(grad)
        opt.step(convert(grad))
    assert np.array_equal(p, np.full(3, 0.25))


def test_what_stands_for_arrays_and_is_none_is_explained():
    w = {"W": np.ones(2)}
    refused(w.values, "got a builtin_function_or_method; call it$")
    trained(*w.values())
    refused({"W": [1.0, 2.0]}, r"'W.0' must be .*, got a float; use np.array.*of the numbers that belong together")
    opt = fastadam.SGD(w)
    for missing in lambda: opt.step_one(w["W"], np.ones(2)), lambda: opt.state[w["W"]]:
        with pytest.raises(KeyError, match="no parameter array.*there are"):
            missing()


def test_a_model_that_is_an_object_is_given_by_its_arrays():
    class Net:
        def __init__(self):
            self.layers = [np.ones(2), np.ones(3)]
            self.name = "net"

    net = Net()
    refused(net, r"got a Net; give its arrays in a dict or list: vars\(x\), for example$")
    del net.name
    opt = fastadam.SGD(vars(net), lr=0.5)
    opt.step({"layers": [np.ones(2), np.ones(3)]})
    assert list(opt.state) == ["layers.0", "layers.1"] and (net.layers[0] == 0.5).all()


def test_numbers_in_a_list_are_made_an_array_and_arrays_are_given_in_one():
    p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    with pytest.raises(TypeError, match=r"grad\[0\] must be a numpy.ndarray, got a list; use np.asarray\(x\)$"):
        fastadam.adam_update([p], [[1.0, 2.0]], [m], [v], 1)
    fastadam.adam_update([p], [np.asarray([1.0, 2.0])], [m], [v], 1)
    with pytest.raises(TypeError, match=r"grad\[0\] must be a numpy.ndarray, got a list; give all arrays in one list$"):
        fastadam.adam_update([p], [[np.ones(2)]], [m], [v], 2)


def test_numbers_of_other_libraries_in_metadata_are_made_python_s(tmp_path):
    class Scalar:
        def __array__(self, dtype=None, copy=None):
            return np.array(0.5)

        def item(self):
            return 0.5

    save = lambda loss: fastadam.save(tmp_path / "c.npz", params=np.ones(2), metadata={"loss": loss})  # noqa: E731
    with pytest.raises(TypeError, match=r"^metadata\['loss'\] is a Scalar; JSON holds .*; use .item\(\)$"):
        save(Scalar())
    save(Scalar().item())


def test_arrays_in_an_object_array_are_given_as_a_list():
    a, b = np.ones(2), np.ones((3, 1))
    x = np.empty(2, object)
    x[:] = [a, b]
    refused(x, r"got object; give the arrays that are in it: list\(x.flat\)$")
    opt = fastadam.SGD(list(x.flat), lr=0.5)
    with pytest.raises(ValueError, match="must have 2 items"):
        opt.step([np.ones(2)])
    opt.step([np.ones_like(a), np.ones_like(b)])
    assert np.all(a == 0.5) and np.all(b == 0.5)


def test_numbers_in_an_object_array_are_cast():
    x = np.array([1.0, 2.0], object)
    refused(x, r"got object; use .astype\(np.float32\), and keep")
    trained(x.astype(np.float32))


def test_fields_of_a_structured_array_are_given_one_by_one():
    x = np.ones(2, [("a", np.float32), ("b", np.float32)])
    refused(x, r"give the array of each field: x\[name\]")
    refused(x["a"], r"must be dense in memory .*use np.ascontiguousarray, and keep", ValueError)
    trained(np.ascontiguousarray(x["a"]))


def test_bfloat16_is_no_parameter_of_adam_update():
    x, m, v = np.ones(2, ml_dtypes.bfloat16), *np.zeros((2, 2), np.float32)
    with pytest.raises(
        TypeError, match=r"must be float32 or float64, got bfloat16; use .astype\(np.float32\), and keep"
    ):
        fastadam.adam_update(x, x, m, v, 1)
    fastadam.adam_update(x.astype(np.float32), x, m, v, 1)


def test_read_only_arrays_are_made_writeable_where_that_is_allowed(tmp_path):
    a = np.ones(3)
    a.flags.writeable = False
    refused(a, r"got a read-only array; set .flags.writeable = True$", ValueError)
    a.flags.writeable = True
    trained(a)
    borrowed = np.frombuffer(np.ones(3).tobytes())
    refused(borrowed, r"got a read-only array; use .copy\(\), and keep the new array", ValueError)
    trained(borrowed.copy())
    np.save(tmp_path / "w.npy", np.ones(3))
    refused(np.load(tmp_path / "w.npy", mmap_mode="r"), r"open the memory map with mode='r\+', or with 'c'", ValueError)
    for mode in "r+", "c":
        mapped = np.load(tmp_path / "w.npy", mmap_mode=mode)
        assert isinstance(mapped.base, mmap.mmap)
        trained(mapped)


class Broken:
    __array__ = lambda self, *args, **kwargs: 1 / 0  # noqa: E731


def test_a_state_entry_that_cannot_be_converted_is_named():
    opt = fastadam.Adam({"w": np.ones(2)})
    saved = opt.state_dict()
    saved["state"][0] = {**saved["state"][0], "exp_avg": Broken()}
    where = r"state_dict\['state'\]\[0\] \(parameter 'w'\)\['exp_avg'\]"
    with pytest.raises(TypeError, match=rf"^{where} cannot be converted to an ndarray: ZeroDivisionError"):
        opt.load_state_dict(saved)


def test_adam_update_is_told_what_is_missing_or_unknown_as_the_classes_are():
    p, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    with pytest.raises(TypeError, match=r"^adam_update\(\) missing 1 required positional argument: 'step'$"):
        fastadam.adam_update(p, p.copy(), m, v)
    with pytest.raises(TypeError, match=r"missing 3 required positional arguments: 'grad', 'exp_avg', 'step'$"):
        fastadam.adam_update(p, exp_avg_sq=v)
    match = r"^adam_update has no beta1 \(did you mean betas\?\); it has param, grad, .*, betas, .*, threads$"
    with pytest.raises(TypeError, match=match):
        fastadam.adam_update(p, p.copy(), m, v, 1, beta1=0.8)
    with pytest.raises(TypeError, match=r"^Adam has no beta1 \(did you mean betas\?\); it has params, lr, betas, "):
        fastadam.Adam(p, beta1=0.8)
    assert_same_bits(p, np.ones(3))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda w: fastadam.SGD(w, lr=memoryview(b"0.1")), "^lr must be a number, got <memory"),
        (lambda w: fastadam.SGD(w, lr=mmap.mmap(-1, 4)), "^lr must be a number, got <mmap"),
        (lambda w: fastadam.SGD(w, accumulate=np.array([1])), r"^accumulate must be an int, got array\(\[1\]\)"),
        (lambda w: fastadam.SGD(w, threads=np.array([1])), r"^threads must be an int or None, got array\(\[1\]\)"),
        (lambda w: fastadam.set_num_threads(np.array([1])), r"^n must be an int or None, got array\(\[1\]\)"),
        (lambda w: fastadam.adam_update(w, w, w, w, np.array([1])), r"^step must be an integer, got array\(\[1\]\)"),
        (lambda w: fastadam.adam_update(w, w, w, w, True), "^step must be an integer, got True"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(call, match):
    with pytest.raises(TypeError, match=match):
        call(np.ones(2))


def endless():
    x = []
    x.append(x)
    return x


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_a_hyper_parameter_that_contains_itself_is_refused(name):
    w = np.ones(2)
    match = rf"^{name} must be a number, got \[\[...\]\]"
    opt = fastadam.SGD(w)
    saved = opt.state_dict()
    saved["param_groups"][0][name] = endless()
    changed = fastadam.SGD(w)
    changed.param_groups[0][name] = endless()
    for use in (
        lambda: fastadam.SGD(w, **{name: endless()}),
        lambda: fastadam.SGD([{"params": w, name: endless()}]),
        lambda: fastadam.SGD([w], overrides={"*": {name: endless()}}),
        lambda: opt.add_param_group({"params": np.ones(1), name: endless()}),
        lambda: opt.load_state_dict(saved),
        lambda: changed.step(np.ones(2)),
        changed.state_dict,
        lambda: setattr(changed, "param_groups", changed.param_groups),
    ):
        with pytest.raises(TypeError, match=match):
            use()


def test_betas_that_contain_themselves_are_refused():
    w = np.ones(2)
    for betas in endless(), [endless(), 0.9], [0.9, endless()]:
        with pytest.raises(TypeError, match="^betas"):
            fastadam.Adam(w, betas=betas)
        with pytest.raises(TypeError, match="^betas"):
            fastadam.adam_update(w, w.copy(), w.copy(), w.copy(), 1, betas=betas)
    opt = fastadam.Adam(w)
    with pytest.raises(TypeError, match="^lr must be a number"):
        opt.lr = endless()


def test_what_stands_for_rows_is_explained_and_the_way_out_works():
    table, rows, grads = np.ones((5, 2)), np.array([3, 1]), np.ones((2, 2))
    opt = fastadam.SGD({"table": table}, lr=0.25)
    several = [fastadam.Rows(rows, grads), fastadam.Rows(rows[:1], grads[:1])]
    with pytest.raises(TypeError, match=r"for rows of a table give fastadam.Rows\(\*x\)$"):
        opt.step({"table": (rows, grads)})
    with pytest.raises(TypeError, match=r"join them: fastadam.Rows\(np.concatenate\(\[each.rows for each in x\]\), "):
        opt.step({"table": several})
    with pytest.raises(TypeError, match=r"got a dict; give one array, or fastadam.Rows for some rows of a table$"):
        opt.step({"table": {3: grads[0]}})
    for missing in lambda: fastadam.Rows(rows), lambda: fastadam.Rows(grads=grads):
        with pytest.raises(TypeError, match=r"which rows and their gradients: Rows\(rows, grads\)"):
            missing()
    with pytest.raises(TypeError, match=r"use np.array\(x\), or np.array\(\[x, ...\]\) of the numbers"):
        opt.step({"table": fastadam.Rows(3, grads[:1])})
    assert np.array_equal(table, np.ones((5, 2)))
    opt.step({"table": fastadam.Rows(*(rows, grads))})
    opt.step(
        {"table": fastadam.Rows(np.concatenate([x.rows for x in several]), np.concatenate([x.grads for x in several]))}
    )
    assert np.array_equal(table[:, 0], [1, 0.5, 1, 0.25, 1])


def test_one_array_at_two_places_is_listed_once():
    table = np.ones((3, 2))
    with pytest.raises(ValueError, match="overlap in memory; list one array once, with the sum of its gradients"):
        fastadam.SGD({"in": table, "out": table})
