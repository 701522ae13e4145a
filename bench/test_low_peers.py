"""Peers with 8 bits of state take Adam's steps, on the memory that they were given."""

import pytest

from bench.low_peers import LOW_PEERS, check
from bench.workers import in_new_process
from bench.workloads import Workload


def step_peer(name):
    """In a process of its own."""
    params, grads = Workload("64 K", ((1 << 16,),)).make()
    starts = [p.copy() for p in params]
    peer = LOW_PEERS[name](params, 1, **({"compiled": False} if LOW_PEERS[name].compiles else {}))
    for _ in range(5):
        peer.step(grads)
    check(name, starts, grads, params, 5)
    with pytest.raises(AssertionError, match="the median step is"):
        check(name, starts, grads, params, 10)
    return peer.nbytes() / params[0].size


@pytest.mark.parametrize("name", LOW_PEERS)
def test_peers_of_8_bits_move_as_float32_does(name):
    pytest.importorskip("torch")
    try:
        kept = in_new_process(step_peer, name)
    except ImportError as error:
        pytest.skip(f"{name}: {error}")
    assert 2 <= kept <= 2.1
