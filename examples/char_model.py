"""A language model of characters in plain NumPy, and the text that it reads: Python's own help."""

from pydoc_data.topics import topics

import numpy as np

CONTEXT = 16  # characters that the next one is guessed from


def python_help():
    """The texts behind `help("if")`, about 370 000 characters: in every CPython, a little different in each version.

    Topics quote each other, so each paragraph is taken once, or what is held out would have been read before; and they
    are shuffled, so that what is held out is of the same kind.
    """
    paragraphs = list(dict.fromkeys("\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")))
    np.random.default_rng(0).shuffle(paragraphs)
    return "\n\n".join(paragraphs)


def examples(text):
    """Contexts (n, CONTEXT) and the characters (n,) that follow them, as numbers; and how many characters there are."""
    alphabet, numbers = np.unique(list(text), return_inverse=True)
    contexts = np.lib.stride_tricks.sliding_window_view(numbers[:-1], CONTEXT)
    return contexts, numbers[CONTEXT:], len(alphabet)


class CharModel:
    """Embedding, one tanh layer, scores of the next character: the model of Bengio et al. (2003) on characters."""

    def __init__(self, rng, characters, width=16, hidden=128, dtype=np.float32):
        def normal(rows, columns, deviation):
            return (rng.standard_normal((rows, columns)) * deviation).astype(dtype)

        self.params = {
            "embedding": normal(characters, width, 1.0),
            "hidden.W": normal(CONTEXT * width, hidden, (CONTEXT * width) ** -0.5),
            "hidden.b": np.zeros(hidden, dtype),
            "out.W": normal(hidden, characters, hidden**-0.5),
            "out.b": np.zeros(characters, dtype),
        }

    def layers(self, contexts):
        p = self.params
        vectors = p["embedding"][contexts].reshape(len(contexts), -1)
        hidden = np.tanh(vectors @ p["hidden.W"] + p["hidden.b"])
        return vectors, hidden, hidden @ p["out.W"] + p["out.b"]

    def scores(self, contexts):
        return self.layers(contexts)[-1]

    def loss_and_gradients(self, contexts, following):
        p = self.params
        vectors, hidden, scores = self.layers(contexts)
        loss, d_scores = cross_entropy(scores, following)
        d_hidden = (d_scores @ p["out.W"].T) * (1 - hidden * hidden)
        d_vectors = (d_hidden @ p["hidden.W"].T).reshape(contexts.size, -1)
        one_hot = np.eye(len(p["embedding"]), dtype=d_vectors.dtype)[contexts.ravel()]
        return loss, {
            "embedding": one_hot.T @ d_vectors,
            "hidden.W": vectors.T @ d_hidden,
            "hidden.b": d_hidden.sum(axis=0),
            "out.W": hidden.T @ d_scores,
            "out.b": d_scores.sum(axis=0),
        }


def cross_entropy(scores, labels):
    """Mean of -log softmax(scores)[label], and its gradient with respect to the scores."""
    scores = scores - scores.max(axis=1, keepdims=True)
    exponentials = np.exp(scores)
    sums = exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float((np.log(sums[:, 0]) - scores[rows, labels]).mean())
    gradient = exponentials / sums
    gradient[rows, labels] -= 1
    return loss, gradient / len(labels)
