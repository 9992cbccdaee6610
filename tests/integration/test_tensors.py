"""What tensors the Python API takes: dtypes, strides, and the text of each refusal."""
import re

import numpy as np
import pytest
from small_model import HEAD_DIM, HEADS, KV_HEADS, attention, make_cache, make_kv, make_q

TOKENS = 100


def dense_cache(**options):
    return make_cache(policy="dense", num_layers=1, max_tokens=256, **options)


def attend(cache, k, v, q, **arguments):
    """One query over TOKENS tokens of layer 0."""
    sequence = cache.sequence()
    sequence.append(TOKENS)
    sequence.write(0, k, v)
    with cache.step([sequence]) as step:
        return step.attend(0, q, **arguments)


@pytest.fixture
def tensors(rng):
    k, v = make_kv(rng, TOKENS)
    return k[0], v[0], make_q(rng, 1)[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3)])
def test_numpy_dtypes(tensors, dtype, tolerance):
    k, v, q = (x.astype(dtype) for x in tensors)
    with dense_cache(dtype=k.dtype) as cache:
        out = attend(cache, k, v, q)
    assert out.dtype == dtype and isinstance(out, np.ndarray)
    np.testing.assert_allclose(out[0], attention(q[0], k, v)[0], atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"),
                         [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 1.6e-2)])
def test_torch_dtypes(tensors, dtype, tolerance):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    k, v, q = (torch.from_numpy(x).to(getattr(torch, dtype)) for x in tensors)
    with dense_cache(dtype=k.dtype) as cache:
        out = attend(cache, k, v, q)
    assert out.dtype == k.dtype and isinstance(out, torch.Tensor)
    want, _ = attention(q[0].float(), k.float(), v.float())
    np.testing.assert_allclose(out[0].float(), want, atol=tolerance)


def test_numpy_bfloat16(tensors):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    k, v, q = (x.astype(ml_dtypes.bfloat16) for x in tensors)
    with dense_cache(dtype="bfloat16") as cache:
        out = attend(cache, k, v, q)
    np.testing.assert_allclose(out[0].astype(float), attention(q[0], k, v)[0], atol=1.6e-2)


def test_pool_converts_what_is_written(tensors):
    k, v, q = tensors
    with dense_cache(dtype="float16") as cache:
        out = attend(cache, k, v, q)
    want, _ = attention(q[0], k.astype(np.float16), v.astype(np.float16))
    np.testing.assert_allclose(out[0], want, atol=1e-5)


def test_strided_inputs_and_outputs(tensors):
    """Head-major, reversed, interleaved and broadcast views are read where they are."""
    k, v, q = tensors
    want, _ = attention(q[0], k, v)
    head_major = np.ascontiguousarray(k.transpose(1, 0, 2)).transpose(1, 0, 2)
    reverse = np.ascontiguousarray(v[::-1])[::-1]
    both = np.stack([q, q], axis=2)[:, :, 1]
    lse = np.empty((1, HEADS), np.float32)
    room = np.full((HEADS, 3, 1, HEAD_DIM), 7.0, np.float32)
    out = room[:, 1].transpose(1, 0, 2)
    with dense_cache() as cache:
        assert attend(cache, head_major, reverse, both, out=out, lse=lse) is out
        np.testing.assert_allclose(room[:, 1, 0], want, atol=1e-5)
        assert np.all(room[:, 0] == 7.0) and np.all(room[:, 2] == 7.0)
        one = np.broadcast_to(k[:, :1], k.shape)
        want, _ = attention(q[0], one, v)
        np.testing.assert_allclose(attend(cache, one, v, q)[0], want, atol=1e-5)


def test_one_kv_head(rng):
    """The stride of a dimension of one says nothing, also where numpy or torch leave it at 0."""
    k, v = (rng.standard_normal((TOKENS, 1, HEAD_DIM)).astype(np.float32) for _ in range(2))
    q = make_q(rng, 1)[0]
    with dense_cache(num_kv_heads=1) as cache:
        same = np.broadcast_to(k[:, 0], (1, TOKENS, HEAD_DIM)).transpose(1, 0, 2)
        assert same.strides[1] == 0
        want, _ = attention(q[0], k, v)
        np.testing.assert_allclose(attend(cache, same, v, q)[0], want, atol=1e-5)


K = (TOKENS, KV_HEADS, HEAD_DIM)
Q = (1, HEADS, HEAD_DIM)
WRITE_ERRORS = [
    (np.zeros((TOKENS, 3, HEAD_DIM), np.float32), "k has shape [100, 3, 64], must be [100, 2, 64]"),
    (np.zeros((TOKENS, HEAD_DIM), np.float32), "k has shape [100, 64], must be [100, 2, 64]"),
    (np.zeros(K), "the dtype of k is float64, must be one of float32, float16, bfloat16"),
    (np.zeros(K, np.float16), "k has dtype float16 and v float32, must be the same"),
    (np.zeros((TOKENS, KV_HEADS, 128), np.float32)[:, :, ::2],
     "the head_dim channels of k have stride 2, must be 1"),
    (np.broadcast_to(np.float32(1), (TOKENS, KV_HEADS, HEAD_DIM)),
     "the head_dim channels of k have stride 0, must be 1"),
    (np.broadcast_to(np.zeros(HEAD_DIM, np.float32), K),
     "k has stride 0 over tokens and over heads, one must not be 0"),
    (np.zeros(K, ">f4"), "k has dtype >f4"),
    ([[0.0]], "k is a list, must be a numpy array or torch tensor"),
]


@pytest.mark.parametrize(("k", "text"), WRITE_ERRORS)
def test_write_refuses(k, text):
    with dense_cache() as cache:
        sequence = cache.sequence()
        sequence.append(TOKENS)
        with pytest.raises(ValueError, match=re.escape(text)):
            sequence.write(0, k, np.zeros(K, np.float32))


ATTEND_ERRORS = [
    ({"q": np.zeros((2, HEADS, HEAD_DIM), np.float32)},
     "q has shape [2, 4, 64], must be [1, 4, 64]"),
    ({"out": np.zeros((1, HEADS, 80), np.float32)},
     "out has shape [1, 4, 80], must be [1, 4, 64]"),
    ({"out": np.zeros(Q, np.float16)}, "out has dtype float16 and q float32, must be the same"),
    ({"out": np.lib.stride_tricks.as_strided(np.zeros(HEAD_DIM, np.float32), Q, (256, 0, 4))},
     "out of shape [1, 4, 64] has strides [64, 0, 1], must not be 0"),
    ({"lse": np.zeros((1, 3), np.float32)}, "lse has shape [1, 3], must be [1, 4]"),
    ({"lse": np.zeros((1, HEADS))}, "the dtype of lse is float64"),
    ({"lse": np.zeros((1, 2 * HEADS), np.float32)[:, ::2]},
     "lse has strides [8, 2], must be C-contiguous: [4, 1]"),
]


@pytest.mark.parametrize(("arguments", "text"), ATTEND_ERRORS)
def test_attend_refuses(tensors, arguments, text):
    k, v, q = tensors
    with dense_cache() as cache, pytest.raises(ValueError, match=re.escape(text)):
        attend(cache, k, v, arguments.pop("q", q), **arguments)


def test_read_only_out_is_refused(tensors):
    k, v, q = tensors
    out = np.zeros(Q, np.float32)
    out.flags.writeable = False
    with dense_cache() as cache, pytest.raises(ValueError, match="out is read-only"):
        attend(cache, k, v, q, out=out)


def test_a_tensor_elsewhere_is_refused(tensors):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    _, v, q = tensors
    with dense_cache() as cache, pytest.raises(ValueError, match="k is on device meta"):
        attend(cache, torch.empty(K, device="meta"), v, q)


@pytest.mark.parametrize(("ids", "text"), [
    ([[1, 2]], "ids have shape [1, 2] and dtype int64"),
    ([1.5], "ids have shape [1] and dtype float64"),
    ([], "ids have shape [0]"),
    ([2**31], "ids are in [2147483648, 2147483648], must fit in 32 bits"),
])
def test_ids_refused(ids, text):
    with dense_cache() as cache, pytest.raises(ValueError, match=re.escape(text)):
        cache.sequence().append(ids)


def test_ids_of_every_integer_type(tensors):
    with dense_cache(vocabulary=[b"a", b"."]) as cache:
        for ids in ([0, 1], (0, 1), np.array([0, 1], np.uint8), np.array([0, 9, 1])[::2]):
            assert cache.sequence().append(ids) == range(2)
        torch = pytest.importorskip("torch", reason="torch is not installed")
        assert cache.sequence().append(torch.tensor([0, 1])) == range(2)
