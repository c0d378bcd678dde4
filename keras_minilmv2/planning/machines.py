"""What this machine or a named accelerator computes and holds."""

import re
import time
from dataclasses import dataclass

import tensorflow as tf

from keras_minilmv2.utils.checks import check_number
from keras_minilmv2.utils.hardware import hardware, memory_bytes

# Share of a machine's matrix-multiply rate that a training step reaches, by the dtype
# that products are computed in: measured with BERT base to 6x384, 16 x 128 tokens, on 2
# CPU cores (benchmarks/RESULTS.md). float16 is not measured.
SHARE_REACHED = {"float32": 0.84, "bfloat16": 0.70, "float16": 0.70}
# Share of an accelerator's published peak: an assumption, not measured.
ASSUMED_UTILISATION = 0.3


@dataclass(frozen=True)
class Device:
    """An accelerator as its vendor describes it.

    Args:
        half_teraflops: float. Peak of one device with numbers of 2 bytes, dense, 10^12
            operations a second.
        float32_teraflops: float. The same with float32 numbers as TensorFlow multiplies
            them: with TF32 where there is one; in bfloat16 passes on a TPU.
        memory_gb: float, of one device.
        num_devices: int.
        source: str. Where the figures are published.
        halves: tuple of str. The dtypes of 2 bytes that it has.
    """

    half_teraflops: float
    float32_teraflops: float
    memory_gb: float
    num_devices: int
    source: str
    halves: tuple[str, ...] = ("bfloat16", "float16")


def _tpu(version, teraflops, memory_gb, num_devices):
    source = f"Google Cloud documentation, TPU {version}"
    return Device(
        teraflops, teraflops, memory_gb, num_devices, source, halves=("bfloat16",)
    )


# NVIDIA's figures were compared with copies of the sheets made by others.
DEVICES = {
    "v100": Device(125, 15.7, 16, 1, "NVIDIA V100 data sheet, SXM2", ("float16",)),
    "t4": Device(65, 8.1, 16, 1, "NVIDIA T4 data sheet", ("float16",)),
    "a100": Device(312, 156, 40, 1, "NVIDIA A100 data sheet"),
    "h100": Device(989, 494, 80, 1, "NVIDIA H100 data sheet, SXM, without sparsity"),
    "h200": Device(989, 494, 141, 1, "NVIDIA H200 data sheet, SXM, without sparsity"),
    "l4": Device(121, 60, 24, 1, "NVIDIA L4 data sheet, without sparsity"),
    "rtx4090": Device(165, 82.6, 24, 1, "NVIDIA Ada architecture white paper"),
    # Of v3, each of the two cores of a chip is a device.
    "tpu-v3-8": _tpu("v3", 61.5, 16, 8),
    "tpu-v4-8": _tpu("v4", 275, 32, 4),
    "tpu-v5e-8": _tpu("v5e", 197, 16, 8),
    "tpu-v5p-8": _tpu("v5p", 459, 95, 4),
    "tpu-v6e-8": _tpu("v6e", 918, 32, 8),
}


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know of a machine; rates and memory are of one device."""

    device: str
    num_devices: int
    half_rate: float  # operations a second of a device
    float32_rate: float
    rates_from: str
    memory: float | None  # bytes of a device
    share_reached: float
    share_from: str


def find_machine(device, recipe, memory_gb, share_reached):
    """Returns the `Machine` of a name in `DEVICES`, or None for this one.

    Args:
        device: str or None, as for `plan`.
        recipe: `Recipe`, whose precision and strategy count.
        memory_gb: float or None, as for `plan`.
        share_reached: float or None, as for `plan`.

    Raises:
        ValueError: if there is no such device, it lacks the recipe's precision, or a
            number is out of its range.
    """
    if memory_gb is not None:
        check_number(above=0, memory_gb=memory_gb)
    if share_reached is not None:
        check_number(above=0, most=1, share_reached=share_reached)
    memory = None if memory_gb is None else 1e9 * memory_gb
    half = recipe.dtype_policy.removeprefix("mixed_")
    if device is None:
        float32_rate = matmul_rate("float32")
        gpus = tf.config.list_physical_devices("GPU")
        one = recipe.strategy == "one_device"
        return Machine(
            device=hardware(),
            num_devices=1 if one else max(1, len(gpus)),
            half_rate=float32_rate if half == "float32" else matmul_rate(half),
            float32_rate=float32_rate,
            rates_from="measured now on matrix products",
            # TensorFlow does not report how much a GPU has.
            memory=memory or (None if gpus else float(memory_bytes())),
            share_reached=share_reached or SHARE_REACHED[half],
            share_from="as asked" if share_reached else "measured on 2 CPU cores",
        )
    number = re.match(r"([1-9]\d*)x|", device)
    known = DEVICES.get(device[number.end() :])
    if known is None:
        raise ValueError(
            f"`device` must be one of {', '.join(DEVICES)}, or several such as 8xa100. "
            f"Received: device={device!r}."
        )
    float32_rate = half_rate = 1e12 * known.float32_teraflops
    if half != "float32":
        half_rate = 1e12 * known.half_teraflops
        if half not in known.halves:
            raise ValueError(
                f"`dtype_policy` must be float32 or mixed_{known.halves[0]}: {device} "
                f"has no {half}. Received: dtype_policy={recipe.dtype_policy!r}."
            )
    return Machine(
        device=device,
        num_devices=int(number[1] or 1) * known.num_devices,
        half_rate=half_rate,
        float32_rate=float32_rate,
        rates_from=f"published peak, {known.source}",
        memory=memory or 1e9 * known.memory_gb,
        share_reached=share_reached or ASSUMED_UTILISATION,
        share_from="as asked" if share_reached else "assumed, not measured",
    )


def matmul_rate(dtype="float32", seconds=0.5):
    """Measures how fast one device of this machine multiplies matrices.

    Args:
        dtype: str.
        seconds: float. How long to measure.

    Returns:
        float, operations a second, two for a multiplication and an addition; the
        best of several products.
    """
    size = 8_192 if tf.config.list_physical_devices("GPU") else 1_024
    matrix = tf.cast(tf.random.stateless_normal((size, size), (0, 0)), dtype)

    @tf.function
    def product(matrix):
        # One number is fetched: it is there when the product is.
        return tf.matmul(matrix, matrix)[0, 0]

    product(matrix).numpy()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        product(matrix).numpy()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
