"""The loops of docs/adapters.md with JAX and autograd: pytest -m recipes. Needs both."""

import re
from pathlib import Path

import numpy as np
import pytest

import fastadam

pytestmark = pytest.mark.recipes
WIDTH, BATCH = 256, 64


def recipe(library):
    section = (Path(__file__).parent.parent / "docs/adapters.md").read_text().split(f"\n## {library}\n")[1]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def network():
    rng = np.random.default_rng(0)
    sizes = (8, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)
    *first, last = ({"W": rng.standard_normal((n, m)) / n**0.5, "b": np.zeros(m)} for n, m in sizes)
    return {"layers": first, "last": last}


def layers(net):
    return [*net["layers"], net["last"]]


def batches(steps):
    rng = np.random.default_rng(1)
    for _ in range(steps):
        x = rng.standard_normal((BATCH, 8))
        yield x, np.sin(x[:, :1])


def output(numpy, net, x):
    for layer in net["layers"]:
        x = numpy.tanh(x @ layer["W"] + layer["b"])
    return x @ net["last"]["W"] + net["last"]["b"]


class Recorded:
    """Batches; after each, what the loop has found in it."""

    def __init__(self, steps, names, *keys):
        self.steps, self.names, self.keys, self.found = steps, names, keys, []

    def __iter__(self):
        for batch in batches(self.steps):
            yield batch
            self.found.append([float(self.names[key]) for key in self.keys])


def test_the_loop_with_jax_reads_no_weights_of_another_step():
    """Losses, accuracies and weights are, to the bit, those of a loop that gives JAX copies of all it reads."""
    import jax
    import jax.numpy as jnp

    def loss(net, x, y):
        return jnp.mean((output(jnp, net, x) - y) ** 2)

    def accuracy(net, x, y):
        for _ in range(8):  # takes longer than the gradients
            x = x + 1e-3 * output(jnp, net, x)
        return jnp.mean(jnp.abs(output(jnp, net, x) - y) < 0.1)

    params = jax.tree.map(jnp.asarray, network())
    names = {"jax": jax, "np": np, "fastadam": fastadam, "loss": loss, "accuracy": accuracy, "params": params}
    names["batches"] = recorded = Recorded(20, names, "value", "correct")
    exec(recipe("JAX"), names)

    net, expected = jax.tree.map(np.array, params), []
    opt = fastadam.Adam(net, lr=0.01)
    loss_and_grads, accuracy = jax.jit(jax.value_and_grad(loss)), jax.jit(accuracy)
    for x, y in batches(20):
        copied = jax.tree.map(np.array, net)
        value, grads = jax.block_until_ready(loss_and_grads(copied, x, y))
        expected.append([float(value), float(accuracy(copied, x, y))])
        opt.step(jax.tree.map(np.array, grads))
    assert recorded.found == expected
    same = jax.tree.map(np.array_equal, names["net"], net)
    assert all(jax.tree.leaves(same)) and recorded.found[-1][0] < recorded.found[0][0]
    assert not np.array_equal(names["net"]["last"]["W"], params["last"]["W"])  # JAX's own are left alone


def test_the_loop_with_autograd_trains_as_autograds_own_adam():
    """Tolerance: autograd rounds its powers of beta in another order; float64. Seen: 1e-13; allowed: 1e-10."""
    import autograd
    import autograd.numpy
    from autograd.misc.optimizers import adam

    def loss(net, x, y):
        return autograd.numpy.mean((output(autograd.numpy, net, x) - y) ** 2)

    names = {"autograd": autograd, "fastadam": fastadam, "loss": loss, "net": network()}
    names["batches"] = recorded = Recorded(20, names, "value")
    exec(recipe("autograd"), names)
    data = list(batches(20))
    trained = adam(autograd.grad(lambda net, i: loss(net, *data[i])), network(), num_iters=20, step_size=0.01)
    for ours, theirs in zip(layers(names["net"]), layers(trained), strict=True):
        for name in "W", "b":
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-10)
    assert recorded.found[-1][0] < recorded.found[0][0]
