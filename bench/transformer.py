"""A small transformer on characters in plain NumPy, forward and backward, and the text that it reads."""

import runpy
import sysconfig
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parent.parent / "examples" / "char_model.py"
cross_entropy = runpy.run_path(str(EXAMPLE))["cross_entropy"]

SYMBOLS = 97  # the 95 of ASCII that can be seen, the end of a line, and one for everything else


def library_text(least=4_000_000):
    """The first modules of Python's standard library as numbers below SYMBOLS."""
    modules, found = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")), []
    while sum(map(len, found)) < least and modules:
        found.append(modules.pop(0).read_bytes())
    return symbols(b"".join(found))


def symbols(text):
    table = np.full(256, SYMBOLS - 1, np.uint8)
    table[32:127] = np.arange(95)
    table[10] = 95
    return table[np.frombuffer(text, np.uint8)]


def normal(rng, shape, deviation, dtype):
    return (rng.standard_normal(shape) * deviation).astype(dtype)


class Transformer:
    """Blocks of attention and of a rectified layer, each behind a layer norm and added to its input."""

    def __init__(self, rng, width=64, heads=4, blocks=4, context=64, characters=SYMBOLS, dtype=np.float32):
        self.heads, self.blocks = heads, blocks
        self.mask = np.triu(np.full((context, context), -1e9, dtype), 1)  # nobody looks ahead
        self.params = {"embedding": normal(rng, (characters, width), 0.1, dtype)}
        self.params["position"] = normal(rng, (context, width), 0.1, dtype)
        deep = (2 * blocks) ** -0.5
        for i in range(blocks):
            self.add_norm(f"{i}.attention.norm", width, dtype)
            self.add_linear(f"{i}.attention.qkv", rng, width, 3 * width, 1.0, dtype)
            self.add_linear(f"{i}.attention.out", rng, width, width, deep, dtype)
            self.add_norm(f"{i}.mlp.norm", width, dtype)
            self.add_linear(f"{i}.mlp.up", rng, width, 4 * width, 2**0.5, dtype)
            self.add_linear(f"{i}.mlp.down", rng, 4 * width, width, deep, dtype)
        self.add_norm("norm", width, dtype)
        self.add_linear("out", rng, width, characters, 1.0, dtype)

    def add_norm(self, name, width, dtype):
        self.params |= {f"{name}.gain": np.ones(width, dtype), f"{name}.shift": np.zeros(width, dtype)}

    def add_linear(self, name, rng, inputs, outputs, gain, dtype):
        self.params[f"{name}.W"] = normal(rng, (inputs, outputs), gain * inputs**-0.5, dtype)
        self.params[f"{name}.b"] = np.zeros(outputs, dtype)

    def linear(self, name, x):
        return x @ self.params[f"{name}.W"] + self.params[f"{name}.b"]

    def linear_back(self, name, x, d, grads):
        grads[f"{name}.W"], grads[f"{name}.b"] = x.T @ d, d.sum(axis=0)
        return d @ self.params[f"{name}.W"].T

    def norm(self, name, x):
        centred = x - x.mean(axis=1, keepdims=True)
        inverse = 1 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + 1e-5)
        centred *= inverse
        return centred * self.params[f"{name}.gain"] + self.params[f"{name}.shift"], (centred, inverse)

    def norm_back(self, name, kept, d, grads):
        normed, inverse = kept
        grads[f"{name}.gain"], grads[f"{name}.shift"] = (d * normed).sum(axis=0), d.sum(axis=0)
        d = d * self.params[f"{name}.gain"]
        return inverse * (d - d.mean(axis=1, keepdims=True) - normed * (d * normed).mean(axis=1, keepdims=True))

    def split(self, x, batch):
        """(batch * context, n * width) -> (n, batch, heads, context, width of a head)"""
        _, width = self.params["position"].shape
        parts = x.reshape(batch, -1, x.shape[1] // width, self.heads, width // self.heads)
        return parts.transpose(2, 0, 3, 1, 4)

    def joined(self, parts):
        n, batch, heads, context, wide = parts.shape
        return parts.transpose(1, 3, 0, 2, 4).reshape(batch * context, n * heads * wide)

    def attention(self, name, x, batch):
        q, k, v = self.split(self.linear(f"{name}.qkv", x), batch)
        scores = q @ k.swapaxes(-1, -2)
        scores *= scores.dtype.type(q.shape[-1] ** -0.5)
        scores += self.mask
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = self.joined((weights @ v)[None])
        return self.linear(f"{name}.out", mixed), (x, q, k, v, weights, mixed)

    def attention_back(self, name, kept, d, batch, grads):
        x, q, k, v, weights, mixed = kept
        (d,) = self.split(self.linear_back(f"{name}.out", mixed, d, grads), batch)
        d_weights = d @ v.swapaxes(-1, -2)
        d_weights -= (d_weights * weights).sum(axis=-1, keepdims=True)
        d_weights *= weights
        d_weights *= weights.dtype.type(q.shape[-1] ** -0.5)
        d_qkv = np.stack([d_weights @ k, d_weights.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ d])
        return self.linear_back(f"{name}.qkv", x, self.joined(d_qkv), grads)

    def layers(self, tokens):
        """Scores of the next characters, one row a place, and what the way back needs."""
        batch, kept = len(tokens), []
        x = (self.params["embedding"][tokens] + self.params["position"]).reshape(tokens.size, -1)
        for i in range(self.blocks):
            normed, about_norm = self.norm(f"{i}.attention.norm", x)
            change, about = self.attention(f"{i}.attention", normed, batch)
            kept += [about_norm, about]
            x = x + change
            normed, about_norm = self.norm(f"{i}.mlp.norm", x)
            hidden = np.maximum(self.linear(f"{i}.mlp.up", normed), 0)
            kept += [about_norm, (normed, hidden)]
            x = x + self.linear(f"{i}.mlp.down", hidden)
        normed, about_norm = self.norm("norm", x)
        return self.linear("out", normed), [*kept, about_norm, normed]

    def loss(self, tokens, following):
        """Mean, in nats a character."""
        return cross_entropy(self.layers(tokens)[0], following.ravel())[0]

    def loss_and_gradients(self, tokens, following):
        scores, kept = self.layers(tokens)
        loss, d = cross_entropy(scores, following.ravel())
        grads = {}
        d = self.linear_back("out", kept.pop(), d, grads)
        d = self.norm_back("norm", kept.pop(), d, grads)
        for i in reversed(range(self.blocks)):
            normed, hidden = kept.pop()
            d_hidden = self.linear_back(f"{i}.mlp.down", hidden, d, grads) * (hidden > 0)
            d_normed = self.linear_back(f"{i}.mlp.up", normed, d_hidden, grads)
            d = d + self.norm_back(f"{i}.mlp.norm", kept.pop(), d_normed, grads)
            d_normed = self.attention_back(f"{i}.attention", kept.pop(), d, len(tokens), grads)
            d = d + self.norm_back(f"{i}.attention.norm", kept.pop(), d_normed, grads)
        grads["position"] = d.reshape(len(tokens), *self.params["position"].shape).sum(axis=0)
        one_hot = np.eye(len(self.params["embedding"]), dtype=d.dtype)[tokens.ravel()]
        grads["embedding"] = one_hot.T @ d
        return loss, {name: grads[name] for name in self.params}
