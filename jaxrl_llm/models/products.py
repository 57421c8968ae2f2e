"""Products of matrices from operands of few bits, summed in float32: what a TPU makes
of float32 by itself, a tensor core of bfloat16, and a CPU with AVX512-BF16 in half the
time (experiments/benchmarks).
"""

import functools

import jax
import jax.numpy as jnp

from jaxrl_llm.types import Array


def product(x: Array, kernel: Array, operands=jnp.float32) -> Array:
  """[..., I] and [I, O] to [..., O], of x's dtype, from `operands`, a dtype.

  As a product of two matrices, whose gradient is one too: with more axes XLA copies
  the activations into another order first.
  """
  rows = flat(x)
  exact = jnp.dtype(operands) == jnp.float32
  y = rows @ kernel.astype(x.dtype) if exact else rounded(rows, kernel, operands)
  return y.reshape(*x.shape[:-1], -1)


def flat(x: Array) -> Array:
  """[..., I] to [N, I]. Products of one such array keep it once for the gradient."""
  return x.reshape(-1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rounded(x: Array, y: Array, operands) -> Array:
  """x y, [N, I] and [I, O], both as `operands`. So are those of the gradient, where
  autodiff would take the slope as it comes, in float32.
  """
  return contracted(x, y, (1, 0), operands).astype(x.dtype)


def rounded_forward(x, y, operands):
  return rounded(x, y, operands), (x.astype(operands), y)


def rounded_backward(operands, kept, slope):
  x, y = kept
  slope_x = contracted(slope, y, (1, 1), operands).astype(slope.dtype)
  return slope_x, contracted(x, slope, (0, 0), operands).astype(y.dtype)


rounded.defvjp(rounded_forward, rounded_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def adapted(x: Array, low: Array, kernel: Array, b: Array, operands) -> Array:
  """x kernel + low b as one product, [x, low] of [kernel; b]: [N, I], [N, r], [I, O]
  and [r, O]. It writes [N, O] once, and copies the kernel.
  """
  both = joined(kernel, b, 0, operands)
  return contracted(joined(x, low, 1, operands), both, (1, 0), operands)


def joined(x: Array, y: Array, axis: int, operands) -> Array:
  """Two arrays as one along an axis, of dtype `operands`."""
  return jnp.concatenate([x.astype(operands), y.astype(operands)], axis)


def adapted_forward(x, low, kernel, b, operands):
  enter = lambda y: y.astype(operands)
  return adapted(x, low, kernel, b, operands), (enter(x), enter(low), kernel, b)


def adapted_backward(operands, kept, slope):
  x, low, kernel, b = kept
  slope = slope.astype(operands)
  found = contracted(slope, joined(kernel, b, 0, operands), (1, 1), operands)
  of = lambda y, z: contracted(y, slope, (0, 0), operands).astype(z.dtype)
  size = x.shape[1]
  return found[:, :size], found[:, size:], of(x, kernel), of(low, b)


adapted.defvjp(adapted_forward, adapted_backward)


def contracted(x, y, axes: tuple[int, int], operands) -> Array:
  """The sums over an axis of each, float32."""
  over = tuple((axis,) for axis in axes), ((), ())
  x, y = x.astype(operands), y.astype(operands)
  return jax.lax.dot_general(x, y, over, preferred_element_type=jnp.float32)
