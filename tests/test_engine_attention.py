"""Packed attention against one dense masked softmax over the whole row."""

import pytest
import torch

from fedecider.engine.attention import PackedAttention
from fedecider.engine.packing import PackedBatch, PromptTree


def plain(query, key, value, scale, starts, lengths):
    """(T, h, d): every sequence by itself, written out."""
    out = torch.zeros_like(query)
    group_size = query.shape[1] // key.shape[1]
    for start, length in zip(starts, lengths, strict=True):
        at = slice(start, start + length)
        for head in range(query.shape[1]):
            scores = query[at, head] @ key[at, head // group_size].T * scale
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            probs = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            out[at, head] = probs @ value[at, head // group_size]
    return out


def tensors(tokens, heads=6, kv_heads=2, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(tokens, count, size, generator=generator, dtype=dtype, requires_grad=True)
        for count in (heads, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [7, 30, 6, 29, 1, 12], [40, 3, 41, 2]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (3, 1)])
def test_values_and_gradients_are_those_of_the_plain_softmax(lengths, heads, kv_heads):
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    inputs = tensors(sum(lengths), heads, kv_heads)
    weight = torch.randn(sum(lengths), heads, 8, dtype=torch.float64)
    expected = plain(*inputs, 0.3, starts, lengths)
    for longest in (512, 10, 0):  # with none, some and all sequences by the fused kernel
        packed = PackedAttention(starts, lengths, longest).attend(*inputs, 0.3)
        torch.testing.assert_close(packed, expected, rtol=0, atol=1e-12)
        for ours, theirs in zip(
            torch.autograd.grad(packed, inputs, weight),
            torch.autograd.grad(expected, inputs, weight, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_rows_outside_of_every_sequence_are_zero_and_change_nothing():
    inputs = tensors(20)
    packed = PackedAttention([3, 11], [5, 4]).attend(*inputs, 1.0)
    torch.testing.assert_close(packed, plain(*inputs, 1.0, [3, 11], [5, 4]), rtol=0, atol=1e-12)
    assert not packed[:3].any() and not packed[15:].any()
    grads = torch.autograd.grad(packed.sum(), inputs)
    for grad in grads:
        assert not grad[:3].any() and not grad[8:11].any() and grad[3:8].any()


def test_bf16_is_near():
    lengths = [7, 30, 6, 29]
    starts = [0, 7, 37, 43]
    exact = tensors(72)
    rounded = [x.detach().to(torch.bfloat16) for x in exact]
    packed = PackedAttention(starts, lengths).attend(*rounded, 0.3)
    assert packed.dtype == torch.bfloat16
    expected = plain(*(x.double() for x in rounded), 0.3, starts, lengths)
    torch.testing.assert_close(packed.double(), expected, rtol=0, atol=0.03)


@torch.no_grad()
def test_continuations_see_their_prompt_and_themselves():
    trees = [
        PromptTree([1] * 5, [[2] * 3, [3] * 7, [4]]),
        PromptTree([1] * 2),
        PromptTree([1] * 9, [[5] * 2]),
    ]
    batch = PackedBatch(trees)
    query, key, value = tensors(len(batch.ids))
    packed = batch.attend(query, key, value, 0.3)
    for tree, offset in zip(trees, batch.offsets, strict=True):
        prompt, at = len(tree.prompt), offset + len(tree.prompt)
        for continuation in tree.continuations:
            rows = [*range(offset, offset + prompt), *range(at, at + len(continuation))]
            alone = plain(query[rows], key[rows], value[rows], 0.3, [0], [len(rows)])
            torch.testing.assert_close(packed[rows], alone, rtol=0, atol=1e-12)
            at += len(continuation)


def test_a_row_with_continuations_has_no_gradient():
    with pytest.raises(RuntimeError, match="no gradient"):
        PackedBatch([PromptTree([1], [[2]])]).attend(*tensors(2), 0.3)
