"""What may hold the arrays, how they are named, and how gradients mirror them."""

import types
from collections import OrderedDict, deque

import numpy as np
import pytest
from helpers import unchanged

import fastadam


def one():
    return np.ones(2)


def keys(params):
    return list(fastadam.Adam(params).state)


def test_none_is_a_key_like_others():
    assert list(fastadam.Adam({None: one(), 0: one(), "x": {None: one()}}).state) == [None, 0, "x.None"]
    assert list(fastadam.Adam({None: {"w": one()}}).state) == ["None.w"]


def test_keys():
    assert keys(one()) == [0]
    assert keys([one(), one()]) == [0, 1]
    assert keys({"W": one(), "b": one()}) == ["W", "b"]
    assert keys({"enc": [{"W": one()}, {"W": one()}], "out": one()}) == ["enc.0.W", "enc.1.W", "out"]
    assert keys([[one(), one()], one()]) == ["0.0", "0.1", 1]
    assert keys({1: one(), ("a", 2): one(), "": one()}) == [1, ("a", 2), ""]
    assert keys([{"params": [one(), one()]}, {"params": one()}, {"params": [one()]}]) == [0, 1, 2, 3]
    assert keys([{"params": {"W": one()}}, {"params": [one()]}, {"params": {"b": one()}}]) == ["W", 0, "b"]


@pytest.mark.parametrize(
    "params",
    [
        {"a": {"b": one()}, "a.b": one()},
        [{"params": {"W": one()}}, {"params": {"W": one()}}],
        [{"params": [one()]}, {"params": {0: one()}}],
    ],
)
def test_two_equal_keys_are_refused(params):
    with pytest.raises(ValueError, match="two parameters have the key"):
        fastadam.Adam(params)


@pytest.mark.parametrize("params", [[], {}, (), [[], {}], [{"params": []}]])
def test_no_parameters_at_all_are_refused(params):
    with pytest.raises(ValueError, match="holds no arrays"):
        fastadam.Adam(params)


@pytest.mark.parametrize(
    "params", [[{"params": one()}, one()], [one(), {"params": one()}], [{"params": one()}, {"W": one()}]]
)
def test_a_mixture_of_groups_and_others_is_refused(params):
    with pytest.raises(ValueError, match="mixes groups"):
        fastadam.Adam(params)


def test_iterables_are_read_once():
    arrays = [one(), one()]
    opt = fastadam.Adam((a for a in arrays), lr=0.5)
    opt.step(one() for _ in arrays)
    assert np.allclose(arrays, 0.5)
    opt = fastadam.Adam(({"params": a} for a in arrays), lr=0.5)
    assert len(opt.param_groups) == 2


@pytest.mark.parametrize("container", [list, tuple, deque, iter, lambda x: dict(enumerate(x)).values()])
def test_any_sequence_mirrors_a_sequence(container):
    arrays = [one(), one()]
    fastadam.Adam(arrays, lr=0.5).step(container([one(), one()]))
    assert np.allclose(arrays, 0.5)


@pytest.mark.parametrize("container", [OrderedDict, types.MappingProxyType])
def test_any_mapping_mirrors_a_mapping_in_any_order(container):
    params = {"a": one(), "b": one()}
    fastadam.Adam(params, lr=0.5).step(container({"b": one(), "a": 0 * one()}))
    assert np.allclose(params["a"], 1.0) and np.allclose(params["b"], 0.5)


NESTED = {"enc": [one(), {"W": one()}], "out": one()}
WRONG = [
    (None, TypeError, r"step needs the gradients, .* opt.step\(grads\)"),
    (one(), TypeError, "grads must be a mapping"),
    ([one()], TypeError, "grads must be a mapping, as params is, got a list"),
    ({"enc": [one(), {"W": one()}]}, ValueError, r"missing \['out'\];"),
    ({"enc": [one(), {"W": one()}], "oot": one()}, ValueError, r"missing \['out'\], unknown \['oot'\]"),
    ({"enc": [one(), {"W": one()}], "out": one(), "x": one()}, ValueError, r"unknown \['x'\]"),
    ({"enc": [one()], "out": one()}, ValueError, "grads at 'enc' must have 2 items.*got 1"),
    ({"enc": [one()] * 3, "out": one()}, ValueError, "grads at 'enc' must have 2 items.*got 3"),
    ({"enc": {0: one(), 1: one()}, "out": one()}, TypeError, "grads at 'enc' must be a sequence"),
    ({"enc": None, "out": one()}, TypeError, "grads at 'enc' must be a sequence"),
    ({"enc": "ab", "out": one()}, TypeError, "grads at 'enc' must be a sequence"),
    ({"enc": np.ones((2, 2)), "out": one()}, TypeError, "grads at 'enc' must be a sequence"),
    ({"enc": [one(), {"V": one()}], "out": one()}, ValueError, r"grads at 'enc.1' must have the names"),
    ({"enc": [one(), {"W": [one()]}], "out": one()}, TypeError, "gradient of parameter 'enc.1.W'"),
]


@pytest.mark.parametrize(("grads", "error", "match"), WRONG)
def test_gradients_in_another_container_are_refused(grads, error, match):
    opt = fastadam.Adam(NESTED)
    with unchanged(opt), pytest.raises(error, match=match):
        opt.step(grads)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_an_iterator_of_too_few_or_too_many_gradients_is_refused(count):
    opt = fastadam.Adam([one(), one()])
    with unchanged(opt), pytest.raises(ValueError, match=f"grads must have 2 items, .* got {count}"):
        opt.step(one() for _ in range(count))


def test_bare_array_has_a_bare_gradient():
    opt = fastadam.Adam(one())
    for grads in [one()], None:
        with pytest.raises(TypeError):
            opt.step(grads)
    opt.step(one())


def test_none_leaves_an_array_and_its_counter_alone():
    params = {"a": one(), "b": [one()]}
    opt = fastadam.Adam(params)
    opt.step({"a": None, "b": [one()]})
    assert np.array_equal(params["a"], one())
    assert (opt.state["a"]["step"], opt.state["b.0"]["step"]) == (0, 1)
    opt.step({"a": one(), "b": [None]})
    assert (opt.state["a"]["step"], opt.state["b.0"]["step"]) == (1, 1)


def test_groups_take_one_entry_each():
    a, b, c = one(), one(), one()
    opt = fastadam.Adam([{"params": [a, b]}, {"params": c, "lr": 0.5}], lr=0.25)
    opt.step([[one(), None], one()])
    assert (a[0], b[0], c[0]) == pytest.approx((0.75, 1.0, 0.5))
    for wrong, error in (([one(), one(), one()], ValueError), ([one(), one()], TypeError), (one(), TypeError)):
        with pytest.raises(error):
            opt.step(wrong)


def test_arrays_of_other_libraries_are_not_containers():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return np.ones(2)

        def __iter__(self):
            return iter([one(), one()])

    with pytest.raises(TypeError, match="parameter 0 must be a numpy.ndarray, got a Tensor; use np.array"):
        fastadam.Adam(Tensor())
    with pytest.raises(TypeError, match="gradient of parameter 0 must be a numpy.ndarray, got a Tensor"):
        fastadam.Adam(one()).step(Tensor())


def test_container_that_holds_itself_is_an_error_not_a_crash():
    params = [one()]
    params.append(params)
    for use in fastadam.Adam, lambda params: fastadam.save("c.npz", params=params):
        with pytest.raises(ValueError, match="params contains itself"):
            use(params)


def test_gradients_of_groups_are_asked_for_as_one_for_each_group():
    opt = fastadam.SGD({"a": np.ones(2)})
    opt.add_param_group({"params": {"b": np.ones(2)}})
    with pytest.raises(TypeError, match="one item for each container that the optimizer was given, got a dict"):
        opt.step({"a": np.ones(2)})


def test_a_copy_that_an_error_asks_for_is_to_be_kept():
    """Given to the optimizer alone, it would be trained unseen."""
    for wrong in np.ones(2, int), np.ones((4, 4))[::2, ::2]:
        with pytest.raises((TypeError, ValueError), match="keep the new array"):
            fastadam.SGD(wrong)
