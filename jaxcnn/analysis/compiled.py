"""What the text of a compiled step says that its compiler does not: traffic, products, and what the forward pass keeps.

Of a GPU the compiler gives no FLOPs and no bytes; these are counted here as XLA counts them on a TPU.
"""

import math
import re
from collections import Counter

from jaxcnn.training.hlo import Array, Instruction, Module

_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "while", "conditional", "call"}
_ALIASES = {"tuple", "get-tuple-element", "bitcast", "copy-done", "slice-done", "async-done"}


def bytes_accessed(module: Module) -> int:
    """Bytes that all kernels of a step read and write, each array counted where it is used, wherever it lies."""
    return _traffic(module, hbm=False)


def hbm_traffic(module: Module) -> int:
    """The same without what lies in a TPU's own memory; a copy between the two counts once."""
    return _traffic(module, hbm=True)


def _traffic(module: Module, hbm: bool) -> int:
    def size(arrays: tuple[Array, ...]) -> int:
        return sum(array.bytes for array in arrays if not (hbm and array.on_chip))

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
                result, operands = len(ends) * min(source.bytes, target.bytes), ()
            else:
                operands = instruction.operands
            total += module.runs[name] * (result + sum(sizes.get(operand, 0) for operand in operands))
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


def product_flops(module: Module) -> float:
    """FLOPs of convolutions and matrix products; as XLA counts them, products with padding are none."""
    total = 0.0
    for name, body in module.computations.items():
        shapes = {i.name: i.arrays for i in body} if module.runs.get(name) else {}
        for instruction in body if shapes else ():
            operands = [shapes[o][0] for o in instruction.operands if shapes.get(o)]
            total += module.runs[name] * _flops(instruction, operands)
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
    if kind == "dot":  # (m, k) × (k, n): the three sizes multiplied are (m·k·n)²
        return 2.0 * math.sqrt(math.prod(left.shape) * math.prod(right.shape) * math.prod(result.shape))
    target = instruction.attribute("custom_call_target")
    if "BackwardInput" in target:  # the window is that of the forward convolution
        left, result = result, left
    elif "BackwardFilter" in target:
        right, result = result, right
    return _convolution_flops(instruction, left, right, result)


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

    Instructions are told apart by JAX's names: those of the backward pass are within "transpose(jvp(…))". In a loop
    over micro-batches it is what one of them keeps.
    """
    return sum(_kept(module.computations[name]) for name in _kernels_of(module))


def _kept(body: list[Instruction]) -> int:
    backward = {i.name: "transpose(" in i.rest for i in body}
    forward = {i.name: not backward[i.name] and "jvp(" in i.rest for i in body}
    by_name = {i.name: i for i in body}
    kept: dict[str, int] = {}
    for instruction in body:
        for operand in instruction.operands if backward[instruction.name] else ():
            source = _origin(operand, by_name)
            if source and forward[source[0]]:
                kept["".join(source)] = by_name[operand].bytes if operand in by_name else 0
    return sum(kept.values())


def _origin(name: str, by_name: dict[str, Instruction]) -> tuple[str, str] | None:
    """(the instruction that computed what `name` stands for, which of its results)."""
    which = ""
    while name in by_name and by_name[name].opcode in _ALIASES | {"copy-start", "slice-start"}:
        instruction = by_name[name]
        if instruction.opcode == "get-tuple-element":
            which += instruction.attribute("index")
        if not instruction.operands:
            return None
        name = instruction.operands[0]
    return (name, which) if name in by_name and by_name[name].opcode != "parameter" else None
