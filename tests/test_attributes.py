"""What a newcomer tries is right, or an error that says what to write."""

import inspect
import pydoc

import numpy as np
import pytest
from helpers import snapshot

import fastadam

NAMES = "SGD", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "RowAdagrad"
CLASSES = [getattr(fastadam, name) for name in NAMES]
COMMON = [
    "max_norm",
    "max_norm_each",
    "max_value",
    "nonfinite",
    "accumulate",
    "ema_decay",
    "threads",
    "state_file",
    "overrides",
]
COMMON += ["state_dtype", "master_bits", "seed"]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("learning_rate", r"Adam has no attribute 'learning_rate' \(did you mean lr\?\)"),
        ("max_nrom", r"did you mean max_norm"),
        ("max_grad_norm", r"did you mean max_norm"),
        ("beta1", r"did you mean betas"),
        ("Threads", r"did you mean threads"),
        ("params", r"the arrays are in opt.param_groups"),
        ("state_file", r"it is chosen when an optimizer is made"),
        ("xyzzy", r"Adam has no attribute 'xyzzy'$"),
    ],
)
def test_an_attribute_that_is_not_there_is_not_set(name, match):
    opt = fastadam.Adam(np.ones(2))
    before = snapshot(opt), dict(vars(opt))
    with pytest.raises(AttributeError, match=match):
        setattr(opt, name, 1)
    assert not hasattr(opt, name)
    assert (snapshot(opt), dict(vars(opt))) == before


def test_subclasses_declare_attributes_of_their_own():
    class Base(fastadam.SGD):
        noted: list[int]

    class Mine(Base):
        label = "none"

        @property
        def doubled(self):
            return 2 * self.lr

        @doubled.setter
        def doubled(self, value):
            self.lr = value / 2

    opt = Mine(np.ones(2), lr=0.5)
    opt.noted, opt.label, opt.doubled, opt._anything = [1], "mine", 4.0, 5
    assert (opt.noted, opt.label, opt.lr, opt._anything) == ([1], "mine", 2.0, 5)
    opt.step = lambda grads: None  # as schedulers of other libraries wrap it
    match = r"'lable' \(did you mean label\?\); a class declares its own \(lable = None"
    with pytest.raises(AttributeError, match=match):
        opt.lable = 1


def test_hyper_parameters_are_read_as_lr_is():
    opt = fastadam.AdamW([{"params": np.ones(2)}, {"params": np.ones(2), "weight_decay": 0.5}], lr=0.1)
    assert (opt.lr, opt.betas, opt.amsgrad, opt.decoupled_weight_decay) == (0.1, (0.9, 0.999), False, True)
    with pytest.raises(ValueError, match=r"the groups differ in weight_decay; read opt.param_groups\[i\]"):
        opt.weight_decay  # noqa: B018
    opt.param_groups[1]["weight_decay"] = 0.01
    assert opt.weight_decay == 0.01
    with pytest.raises(AttributeError, match=r"set opt.param_groups\[i\]\['weight_decay'\]"):
        opt.weight_decay = 0.1
    with pytest.raises(AttributeError, match="no attribute 'betas'"):
        fastadam.SGD(np.ones(2)).betas  # noqa: B018


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("ema_decay", 0.9, "ema_decay was None when the optimizer was made"),
        ("accumulate", 2, "accumulate was 1 when the optimizer was made"),
        ("max_norm", -1.0, "^max_norm must be > 0"),
        ("amsgrad", True, "amsgrad is chosen when a group is made, because it needs state: make a new optimizer"),
        ("param_groups", [], "param_groups has 0 groups, the optimizer 1; add_param_group adds one"),
        ("param_groups", (), "param_groups must be a list, got a tuple"),
        ("param_groups", [{"lr": 0.1}], r"param_groups\[0\] has lost its params"),
    ],
)
def test_what_cannot_be_changed_later_is_refused_when_it_is_set(name, value, match):
    opt = fastadam.Adam(np.ones(2))
    before = getattr(opt, name)
    with pytest.raises((ValueError, TypeError, AttributeError), match=match):
        setattr(opt, name, value)
    assert getattr(opt, name) is before
    opt.step(np.ones(2))


def test_what_other_libraries_need_and_this_one_does_not_is_explained():
    opt = fastadam.SGD(np.ones(2))
    with pytest.raises(AttributeError, match="no zero_grad: gradients are yours, and only read; leave the call out"):
        opt.zero_grad()
    with pytest.raises(TypeError, match=r"step needs the gradients, .*: opt.step\(grads\)"):
        opt.step()
    for name, meant in ("RMSProp", "RMSprop"), ("Momentum", "SGD"), ("SparseAdam", "Rows"):
        with pytest.raises(
            AttributeError, match=rf"module 'fastadam' has no attribute '{name}' \(did you mean {meant}\?\)"
        ):
            getattr(fastadam, name)
    assert not hasattr(fastadam, "__wrapped__") and not hasattr(opt, "__array__")


@pytest.mark.parametrize("name", ["mpi", "sklearn", "thinc", "torch"])
def test_an_adapter_that_is_not_imported_is_named(name):
    match = f"^fastadam.{name} is not imported with fastadam: write import fastadam.{name} first$"
    with pytest.raises(AttributeError, match=match):
        fastadam.__getattr__(name)  # what Python calls until then


def test_a_misspelt_key_of_a_group_is_one_clear_sentence():
    opt = fastadam.SGD(np.ones(2))
    opt.param_groups[0]["learning_rate"] = 0.1
    match = r"^param_groups\[0\] has the unknown key 'learning_rate' \(did you mean lr\?\); it must have params, lr, "
    with pytest.raises(ValueError, match=match):
        opt.step(np.ones(2))


@pytest.mark.parametrize("cls", CLASSES)
def test_signatures_show_every_option_with_its_type(cls):
    parameters = inspect.signature(cls).parameters
    assert list(parameters)[-len(COMMON) :] == COMMON
    assert all(parameters[name].annotation is not inspect.Parameter.empty for name in parameters)
    defaults = {**dict.fromkeys(COMMON), "nonfinite": "propagate", "accumulate": 1, "state_dtype": "float32", "seed": 0}
    assert {name: parameters[name].default for name in COMMON} == defaults
    text = pydoc.plain(pydoc.render_doc(cls))
    assert "max_norm: float | None = None" in text and "**" not in text.splitlines()[2]
    assert "partial(" not in text and "state_file, overrides" in text and "state_dtype, master_bits, seed" in text


def test_steps_is_the_largest_counter():
    opt = fastadam.SGD([np.ones(1), np.ones(1)])
    assert opt.steps == 0
    opt.step([np.ones(1), None])
    opt.step([np.ones(1), np.ones(1)])
    assert opt.steps == 2


def test_last_values_are_what_the_last_step_took():
    """Not what a call took that was left out, refused, or only joined a sum."""
    calls = []

    def schedule(count):
        calls.append(count)
        return 0.1 * (count + 1)

    groups = [{"params": np.ones(1), "lr": schedule}, {"params": np.ones(1), "betas": (lambda t: 0.5, 0.99)}]
    opt = fastadam.Adam(groups, nonfinite="skip", accumulate=2)
    assert opt.last_values == [{}, {}]
    ones, bad = [np.ones(1), None], [np.array([np.nan]), None]
    opt.step(ones)
    assert opt.last_values == [{}, {}]
    opt.step(bad)
    assert opt.last_values == [{}, {}] and opt.skipped_steps == 1
    opt.step(ones)
    first = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "eps_root": 0.0}
    assert opt.last_values == [first, {}]
    opt.accumulate = 1
    with pytest.raises(TypeError):
        opt.step([np.ones(1), "no array"])
    opt.step(bad)
    assert opt.last_values == [first, {}]
    opt.step_one(1, np.ones(1))
    assert opt.last_values == [first, {**first, "lr": 1e-3, "betas": (0.5, 0.99)}]
    opt.step(ones)
    assert opt.last_values[0]["lr"] == 0.2 and opt.steps == 2


def test_print_shows_what_is_wrong_with_groups():
    opt = fastadam.SGD(np.ones(2), lr=0.5)
    del opt.param_groups[0]["lr"]
    assert "missing" in repr(opt)
    opt.param_groups.append({})
    assert "missing" in repr(opt)
    assert repr(fastadam.SGD.__new__(fastadam.SGD)) == "<SGD that was not made>"


def test_print_shows_a_table_of_groups_and_what_surrounds_the_rule():
    groups = [{"params": [np.ones((2, 3)), np.ones(4)], "lr": lambda t: 0.5}, {"params": np.ones(5), "amsgrad": True}]
    opt = fastadam.Adam(groups, max_norm=2.0, ema_decay=0.9)
    name, header, first, second, about = str(opt).splitlines()
    assert name == "Adam" and header.split()[:4] == ["group", "arrays", "elements", "lr"]
    assert first.split()[:4] == ["0", "2", "10", "schedule"] and second.split()[:4] == ["1", "1", "5", "0.001"]
    assert "amsgrad" in second and "amsgrad" not in first and len({len(line) for line in (header, first, second)}) == 1
    assert about.startswith("max_norm=2.0, ")
    assert all(setting in about for setting in ("ema_decay=0.9", "steps=0", "threads="))
    opt.step([[np.ones((2, 3)), np.ones(4)], np.ones(5)])
    assert "schedule, last 0.5" in str(opt) and "steps=1" in str(opt)


def test_a_class_attribute_that_would_hide_an_option_is_refused():
    with pytest.raises(TypeError, match=r"Mine\.max_norm would hide the option max_norm; give it to super"):

        class Mine(fastadam.Adam):
            max_norm = 1.0


def test_an_option_cannot_be_set_before_the_constructor_or_deleted():
    class Early(fastadam.Adam):
        def __init__(self, params):
            self.threads = 1
            super().__init__(params)

    with pytest.raises(AttributeError, match=r"threads is set by the constructor: give it to super\(\).__init__"):
        Early(np.ones(2))
    opt = fastadam.Adam(np.ones(2))
    with pytest.raises(AttributeError, match="threads cannot be deleted"):
        del opt.threads


def test_the_constructor_adds_groups_by_the_method_that_a_subclass_may_have():
    added = []

    class Mine(fastadam.SGD):
        def add_param_group(self, group):
            added.append(len(group["params"]))
            super().add_param_group(group)

    opt = Mine([{"params": [np.ones(2)]}, {"params": [np.ones(3), np.ones(4)]}])
    assert added == [1, 2] and len(opt.param_groups) == 2
