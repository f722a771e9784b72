"""Arithmetic and traffic of one instruction of a compiled module."""

import math
import re

import numpy as np

from stride_jax.run.planning.hlo import Computation, Instruction

_ARITHMETIC = {
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "sign", "power",
    "exponential", "exponential-minus-one", "log", "log-plus-one", "tanh", "logistic", "erf",
    "sqrt", "rsqrt", "cbrt", "sine", "cosine", "tan", "atan2", "floor", "ceil", "remainder",
    "round-nearest-even", "round-nearest-afz", "clamp",
}  # fmt: skip
# Names for existing values, or calls of computations that are counted themselves.
_UNMOVED = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "opt-barrier",
}  # fmt: skip


def _floating(i: Instruction) -> bool:
    return bool(i.shapes) and i.shapes[0][0] in ("f16", "bf16", "f32", "f64", "c64")


def flops_of(i: Instruction, own: Computation) -> float:
    """Floating-point operations; those of what it calls are left out."""
    if i.opcode in _ARITHMETIC:
        return float(i.size) if _floating(i) else 0.0
    if not i.operands or i.operands[0] not in own:
        return 0.0
    first = own[i.operands[0]]
    if i.opcode == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", i.rest)
        axes = [int(n) for n in dims.group(1).split(",")] if dims and dims.group(1) else []
        return 2.0 * i.size * math.prod(first.shapes[0][1][axis] for axis in axes)
    if i.opcode == "convolution":
        return _convolution(i, first, own[i.operands[1]])
    if i.opcode == "reduce":
        return float(first.size) if _floating(i) else 0.0
    if i.opcode == "reduce-window" and (size := re.search(r"window=\{size=([0-9x]+)", i.rest)):
        return float(i.size * math.prod(map(int, size.group(1).split("x")))) if _floating(i) else 0
    if i.opcode == "custom-call":
        return kernel_flops(i, own) or _library(i, first)
    return 0.0


# Products of a pair of blocks: queries and keys, weights and values; backwards more.
_PRODUCTS = (("_dkv", 4), ("_dq", 3), ("_fwd", 2))
_BLOCK = r'block_{}\\+": (\d+)'


def kernel_flops(i: Instruction, own: Computation) -> float:
    """Operations of JAX's splash attention on a TPU, as if no block of its grid were skipped.

    The compiler knows nothing of kernels that are written by hand; this one says its blocks.
    """
    if i.opcode != "custom-call" or "splash_m" not in i.name:
        return 0.0
    kind, products = next(((word, n) for word, n in _PRODUCTS if word in i.name), ("", 0))
    suffix = "" if kind == "_fwd" else kind
    sides = [re.search(_BLOCK.format(axis + suffix), i.rest) for axis in ("q", "kv")]
    # The blocks that each row of them meets, and the largest array: heads, tokens, channels.
    grid = next((own[n].shapes[0][1] for n in i.operands if own[n].shapes[0][0] == "s8"), None)
    arrays = [dims for _, dims in i.shapes if len(dims) >= 3]
    if not products or grid is None or not arrays or None in sides:
        return 0.0
    pair = math.prod(int(side.group(1)) for side in sides if side is not None)
    *heads, _, channels = max(arrays, key=math.prod)
    return 2.0 * products * math.prod(heads) * math.prod(grid[-2:]) * pair * channels


def _library(i: Instruction, first: Instruction) -> float:
    """Calls of LAPACK and of matrix products outside XLA."""
    target = re.search(r'custom_call_target="([^"]*)"', i.rest)
    name, side = (target.group(1) if target else ""), first.shapes[0][1][-1:]
    if "potrf" in name or "Cholesky" in name:
        return first.size * side[0] / 3
    if "trsm" in name:
        return float(i.size * side[0])
    if "syevd" in name or "Eigh" in name:
        return 9.0 * first.size * side[0]
    return 2.0 * i.size * side[0] if "matmul" in name else 0.0


def bytes_of(i: Instruction, own: Computation) -> float:
    """Bytes that an operation of its own reads and writes."""
    if i.opcode in _UNMOVED or i.opcode.endswith("-done"):
        return 0.0
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * i.nbytes
    if i.opcode in ("dynamic-update-slice", "scatter"):
        return 2.0 * own[i.operands[-1 if i.opcode == "scatter" else 1]].nbytes
    return float(i.nbytes + sum(own[name].nbytes for name in i.operands if name in own))


def fused_bytes(i: Instruction, inside: Computation) -> float:
    """Bytes that a fused group reads of its operands, and writes."""
    users: dict[str, list[Instruction]] = {}
    for line in inside.values():
        for name in dict.fromkeys(line.operands):
            users.setdefault(name, []).append(line)

    def read(name: str) -> float:
        """Bytes that are needed of a value; a slice needs no more than itself."""
        needed = 0.0
        for user in users.get(name, []):
            if user.opcode == "bitcast":
                needed += read(user.name)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                needed += user.nbytes
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                return inside[name].nbytes
        return min(needed, inside[name].nbytes)

    root = next(line for line in inside.values() if line.root)
    while root.opcode == "bitcast":
        root = inside[root.operands[0]]
    in_place = root.opcode == "dynamic-update-slice"
    written = inside[root.operands[1]].nbytes if in_place else i.nbytes
    return written + sum(read(p.name) for p in inside.values() if p.opcode == "parameter")


def halves(i: Instruction, own: Computation) -> bool:
    """Whether it is a product that reads 16 bits: its operands, or by a TPU's default precision."""
    if i.opcode not in ("dot", "convolution"):
        return False
    kinds = {own[name].shapes[0][0] for name in i.operands if name in own and own[name].shapes}
    by_default = ":T(" in i.type and "highest" not in i.rest  # a tiled layout: of a TPU
    return bool(kinds & {"bf16", "f16"}) or (by_default and "f32" in kinds)


_WINDOW = re.compile(r"window=\{([^}]*)\}")


def _convolution(i: Instruction, image: Instruction, kernel: Instruction) -> float:
    """Multiply-adds of a convolution that meet no padding: a batch of products is one, on TPUs."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
    assert labels is not None, "a convolution without its axes"
    read, weights, made = labels.groups()
    sizes = {axis: i.shapes[0][1][made.index(axis)] for axis in made}
    depth = kernel.shapes[0][1][weights.index("i")]
    given = _WINDOW.search(i.rest)
    words = dict(word.split("=") for word in given.group(1).split()) if given else {}

    def each(name: str, plain: str) -> list[str]:
        return words[name].split("x") if name in words else [plain] * (len(made) - 2)

    pads = [int(text.split("_")[0]) for text in each("pad", "0_0")]
    names = ("size", "stride", "lhs_dilate", "rhs_dilate")
    columns = [list(map(int, each(name, "1"))) for name in names]
    total = 2.0 * sizes["b"] * sizes["f"] * depth
    for axis, (pad, *window) in enumerate(zip(pads, *columns, strict=True)):
        before = image.shapes[0][1][read.index(str(axis))]
        total *= _meetings(sizes[str(axis)], before, pad, *window)
    return total


def _meetings(
    made: int, read: int, pad: int, size: int, stride: int, spread: int, apart: int
) -> int:
    """Pairs of an output and an entry of the window that meet an input along one axis."""
    place = np.arange(made)[:, None] * stride + np.arange(size)[None] * apart - pad
    inside = (place >= 0) & (place <= (read - 1) * spread) & (place % spread == 0)
    return int(inside.sum())
