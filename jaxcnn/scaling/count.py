"""What the text of a compiled step says that its compiler does not: traffic, products, and what the forward pass keeps.

Of a GPU the compiler gives no FLOPs and no bytes, and on a TPU it counts the body of a loop once: both are made up for
here. Bytes are the operands and results of all kernels, which XLA's own "bytes accessed" is about, too.
"""

import math
import re
from collections import Counter

from jaxcnn.training.hlo import Array, Instruction, Module

_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "while", "conditional", "call"}
_ALIASES = {"bitcast", "opt-barrier", "copy-start", "copy-done", "slice-start", "slice-done", "async-done"}


def bytes_accessed(module: Module, once: bool = False) -> int:
    """Bytes that all kernels of a step read and write, each array counted where it is used, wherever it lies.

    Args:
      once: the bodies of loops count once.
    """
    return _traffic(module, hbm=False, once=once)


def hbm_traffic(module: Module) -> int:
    """The same without what lies in a TPU's own memory; a copy between the two counts once."""
    return _traffic(module, hbm=True, once=False)


def _traffic(module: Module, hbm: bool, once: bool) -> int:
    def size(arrays: tuple[Array, ...]) -> int:
        return sum(array.stored for array in arrays if not (hbm and array.on_chip))

    total = 0
    for name in _kernels_of(module):
        sizes: dict[str, int] = {}
        for instruction in module.computations[name]:
            sizes[instruction.name] = result = size(instruction.arrays)
            if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
                continue
            if "ConcatBitcast" in instruction.rest:  # of a TPU: slices that lie side by side already
                continue
            if instruction.opcode in ("copy-start", "slice-start"):
                source, target = instruction.arrays[:2]
                ends = [array for array in (source, target) if not (hbm and array.on_chip)]
                result, operands = len(ends) * min(source.stored, target.stored), ()
            else:
                operands = instruction.operands
            total += (1 if once else module.runs[name]) * (result + sum(sizes.get(operand, 0) for operand in operands))
    return total


def _kernels_of(module: Module) -> list[str]:
    """The computations whose instructions are kernels: the entry, and the bodies of loops and branches in it."""
    names, queue = [], [module.entry]
    while queue:
        names.append(name := queue.pop())
        for instruction in module.computations[name]:
            if instruction.opcode in ("while", "conditional", "call"):
                queue += [n for n in re.findall(r"%([\w.-]+)", instruction.rest) if n in module.computations]
    return names


def product_flops(module: Module, once: bool = False) -> float:
    """FLOPs of convolutions and matrix products; as XLA counts them, products with padding are none.

    Args:
      once: the bodies of loops count once.
    """
    total = 0.0
    for name, body in module.computations.items():
        shapes = {i.name: i.arrays for i in body} if module.runs.get(name) else {}
        for instruction in body if shapes else ():
            operands = [shapes[o][0] for o in instruction.operands if shapes.get(o)]
            total += (1 if once else module.runs[name]) * _flops(instruction, operands)
    return total


def product_types(module: Module) -> Counter[tuple[str, ...]]:
    """(dtype of the result, of the operands) of each convolution and matrix product -> how many the text has."""
    found: Counter[tuple[str, ...]] = Counter()
    for body in module.computations.values():
        shapes = {i.name: i.arrays for i in body}
        for instruction in body:
            if _kind(instruction):
                operands = [shapes[o][0].dtype for o in instruction.operands[:2] if shapes.get(o)]
                found[(instruction.arrays[0].dtype, *operands)] += 1
    return found


def _kind(instruction: Instruction) -> str:
    """ "convolution", "dot", or "" for all else; a GPU has them as calls of its libraries."""
    if instruction.opcode in ("convolution", "dot"):
        return instruction.opcode
    target = instruction.attribute("custom_call_target") if instruction.opcode == "custom-call" else ""
    return "convolution" if "__cudnn$conv" in target else "dot" if "__cublas" in target else ""


def _flops(instruction: Instruction, operands: list[Array]) -> float:
    kind = _kind(instruction)
    if not kind or len(operands) < 2:
        return 0.0
    left, right, result = operands[0], operands[1], instruction.arrays[0]
    if kind == "dot":
        return 2.0 * math.prod(result.shape) * _contracted(instruction, left)
    target = instruction.attribute("custom_call_target")
    if "BackwardInput" in target:  # the window is that of the forward convolution
        left, result = result, left
    elif "BackwardFilter" in target:
        right, result = result, right
    return _convolution_flops(instruction, left, right, result)


def _contracted(instruction: Instruction, left: Array) -> int:
    """The products that a matrix product sums into each of its results; a call of cuBLAS has its axes in JSON."""
    found = re.search(r"lhs_contracting_dim(?:s=\{|ensions\":\[)([\d,\"]+)", instruction.rest)
    axes = [int(axis.strip('"')) for axis in found[1].split(",")] if found else [len(left.shape) - 1]
    return math.prod(left.shape[axis] for axis in axes)


def _convolution_flops(instruction: Instruction, image: Array, kernel: Array, result: Array) -> float:
    """Multiplications and additions: of each output pixel those window positions that meet a pixel of the image."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if not labels:
        return 0.0
    sizes = [
        dict(zip(label, x.shape, strict=True))
        for label, x in zip(labels.groups(), (image, kernel, result), strict=True)
    ]
    window = {key: value.split("x") for key, value in re.findall(r"(\w+)=([\dx_-]+)", _window(instruction))}
    pairs = 1
    for i in range(sum(label.isdigit() for label in labels[1])):
        taps = int(window["size"][i]) if window else 1
        stride, dilation, gaps = (
            int(window[key][i]) if key in window else 1 for key in ("stride", "lhs_dilate", "rhs_dilate")
        )
        low = int(window["pad"][i].split("_")[0]) if "pad" in window else 0
        reach = (sizes[0][str(i)] - 1) * dilation  # of the last pixel of the image, gaps counted
        places = (o * stride + t * gaps - low for o in range(sizes[2][str(i)]) for t in range(taps))
        pairs *= sum(0 <= place <= reach and place % dilation == 0 for place in places)
    return 2.0 * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"] * pairs


def _window(instruction: Instruction) -> str:
    found = re.search(r"window=\{(.*?)\}", instruction.rest)
    return found[1] if found else ""


def activations(module: Module) -> int:
    """Bytes of what the forward pass computes and the backward pass reads: kept from the one to the other.

    An estimate: instructions are told apart by JAX's names. Those of the forward pass are within "jvp(…)", those of the
    backward pass within "transpose(jvp(…))", or the optimizer's where the two are fused. In a loop it is what one round
    keeps.
    """
    return sum(_kept(module.computations[name]) for name in _kernels_of(module))


def _kept(body: list[Instruction]) -> int:
    by_name = {i.name: i for i in body}
    kept: dict[tuple[str, str], int] = {}
    for instruction in body:
        after = "op_name=" in instruction.rest and not _forward(instruction)
        for operand in instruction.operands if after else ():
            for source, which in _origins(operand, by_name):
                if _forward(source):
                    arrays = source.arrays if not which else source.arrays[int(which) : int(which) + 1]
                    kept[source.name, which] = sum(array.stored for array in arrays)
    return sum(kept.values())


def _forward(instruction: Instruction) -> bool:
    return "jvp(" in instruction.rest and "transpose(" not in instruction.rest


def _origins(name: str, by_name: dict[str, Instruction], which: str = "") -> list[tuple[Instruction, str]]:
    """(the instruction that computed what `name` stands for, which of its results, "" for all)."""
    instruction = by_name.get(name)
    if instruction is None or instruction.opcode == "parameter":
        return []
    if instruction.opcode == "get-tuple-element":
        return _origins(instruction.operands[0], by_name, instruction.attribute("index"))
    if instruction.opcode == "tuple" and which:
        return _origins(instruction.operands[int(which)], by_name)
    if "ConcatBitcast" in instruction.rest:  # of a TPU: slices of one array, fetched one by one
        return [found for operand in instruction.operands for found in _origins(operand, by_name)]
    if instruction.opcode in _ALIASES and instruction.operands:
        inner = which if instruction.opcode == "opt-barrier" else ""
        return _origins(instruction.operands[0], by_name, inner)
    return [(instruction, which)]
