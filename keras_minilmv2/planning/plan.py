"""What a run will cost, before it is started: operations, memory, hours."""

import functools
from dataclasses import asdict

from keras_minilmv2.backbones.projections import check_layer
from keras_minilmv2.distillation.objectives import objective_for
from keras_minilmv2.planning.costs import step_memory, step_operations
from keras_minilmv2.planning.machines import find_machine
from keras_minilmv2.planning.shapes import encoder_shape, student_shape
from keras_minilmv2.utils.tables import count, markdown_table

# Memory that is not planned with: what the runtime and the graph of a step took on a
# CPU, and a share for fragments.
_RUNTIME_BYTES = 1e9
_FREE_SHARE = 0.1


def plan(recipe, device=None, memory_gb=None, share_reached=None):
    """Estimates what a run will cost: arithmetic on shapes and measured rates.

    The corpus is not read and no model is loaded or built. The time is that of the
    updates alone, without preparing the corpus and without held-out losses.

    Args:
        recipe: `Recipe`.
        device: str or None. A name in `DEVICES`, or several of them as in `"8xa100"`;
            None for this machine, whose matrix-multiply rate is measured.
        memory_gb: float. Memory of a device, 10^9 bytes. Defaults to what is known.
        share_reached: float. Share of the machine's matrix-multiply rate, or of the
            device's peak, that an update reaches. Defaults to `SHARE_REACHED` for this
            machine and to `ASSUMED_UTILISATION` for a named device.

    Returns:
        dict that JSON can hold: `"run"`, `"operations"` (of an update),
        `"memory"` (bytes of a device), `"batch"` (sequences of a device) and `"time"`.

    Raises:
        ValueError: if the recipe does not fit its teacher, or there is no such device.
        ConnectionError: as `encoder_shape` does.
    """
    objective = objective_for(
        recipe.objective, lambda each: each.relations, "to count its costs"
    )
    teacher = encoder_shape(recipe.teacher)
    student = student_shape(teacher, recipe)
    if not 3 <= recipe.sequence_length <= teacher.max_sequence_length:
        raise ValueError(
            "`sequence_length` must be at least 3 and not beyond the position table "
            f"of the teacher. Received: sequence_length={recipe.sequence_length}, "
            f"max_sequence_length={teacher.max_sequence_length}."
        )
    check_layer("teacher_layer", recipe.teacher_layer, len(teacher.blocks))
    pairs, num_relation_heads = objective.relations(
        recipe, teacher.layer_heads[recipe.teacher_layer - 1]
    )
    operations = step_operations(
        teacher,
        student,
        recipe.teacher_layer,
        num_relation_heads,
        pairs,
        recipe.batch_size,
        recipe.sequence_length,
    )
    machine = find_machine(device, recipe, memory_gb, share_reached)
    memory_of = functools.partial(
        step_memory,
        teacher,
        student,
        pairs,
        recipe.sequence_length,
        dtype_policy=recipe.dtype_policy,
    )
    batch = _batch_plan(recipe, machine, memory_of)
    steps = recipe.accumulation_steps
    memory = memory_of(batch["of_device"] // steps, accumulated=steps > 1)
    in_float32 = operations["relations"] + operations["optimizer"]
    seconds = (
        in_float32 / machine.float32_rate
        + (operations["total"] - in_float32) / machine.half_rate
    ) / (machine.share_reached * machine.num_devices)
    projections = len(set("".join(pairs)))
    trained = student.num_parameters_up_to(len(student.blocks), projections)
    in_use = teacher.num_parameters_up_to(recipe.teacher_layer, projections)
    return {
        "run": {
            "teacher": _in_words(teacher),
            "teacher_layer": recipe.teacher_layer,
            "student": _in_words(student),
            "trained_parameters": trained,
            "updates": recipe.total_steps,
            "batch_size": recipe.batch_size,
            "sequence_length": recipe.sequence_length,
            "tokens": recipe.total_steps * recipe.batch_size * recipe.sequence_length,
            "dtype_policy": recipe.dtype_policy,
        },
        "operations": operations,
        "memory": {
            **memory,
            "teacher_in_use": 4 * in_use,
            "checkpoint": memory["student"] + memory["optimizer"],
        },
        "batch": batch,
        "time": {
            **asdict(machine),
            "seconds_of_update": seconds,
            "hours": recipe.total_steps * seconds / 3_600,
        },
    }


def _batch_plan(recipe, machine, memory_of):
    """What a device can work on at a time; None where its memory is not known."""
    if recipe.batch_size % machine.num_devices != 0:
        raise ValueError(
            "`batch_size` must be a multiple of the number of devices. Received: "
            f"batch_size={recipe.batch_size}, num_devices={machine.num_devices}."
        )
    batch = recipe.batch_size // machine.num_devices
    if batch % recipe.accumulation_steps != 0:
        raise ValueError(
            "`accumulation_steps` must divide the batch of a device. Received: "
            f"accumulation_steps={recipe.accumulation_steps}, batch={batch}."
        )
    usable = largest = fewest = None
    if machine.memory is not None:
        usable = max(0.0, (1 - _FREE_SHARE) * machine.memory - _RUNTIME_BYTES)
        one = memory_of(1)
        parts = ("teacher", "student", "optimizer", "gradients")
        room = usable - sum(one[part] for part in parts)
        fits_one = one["peak"] <= usable
        largest = int(room // one["activations"]) if fits_one else 0
        fits = (
            steps
            for steps in range(1, batch + 1)
            if batch % steps == 0
            and memory_of(batch // steps, accumulated=steps > 1)["peak"] <= usable
        )
        fewest = next(fits, None)
    # "largest" is without accumulation, "accumulation_steps" are the fewest.
    return {
        "of_device": batch,
        "micro_batch": batch // recipe.accumulation_steps,
        "usable": usable,
        "largest": largest,
        "accumulation_steps": fewest,
    }


def _in_words(shape):
    words = (
        f"{shape.family} {len(shape.blocks)}x{shape.hidden_dim}, "
        f"{count(shape.num_parameters)} parameters"
    )
    if shape.head_counts is None:
        return words
    heads = ", ".join(map(str, shape.head_counts))
    neurons = ", ".join(map(str, shape.neuron_counts))
    return f"{words}, left in its layers: {heads} heads, {neurons} neurons"


def plan_text(plan):
    """A plan as people read it.

    Args:
        plan: dict that `plan` returned.

    Returns:
        str of several lines.
    """
    run, memory, batch = plan["run"], plan["memory"], plan["batch"]
    operations = plan["operations"]
    parts = {
        "teacher": f"teacher, forward to layer {run['teacher_layer']}",
        "student_forward": "student, forward",
        "student_backward": "student, backward",
        "relations": "relations and their gradient",
        "optimizer": "optimizer",
        "total": "all",
    }
    work = [
        [
            label,
            _scaled(operations[part]),
            _scaled(operations[part] * run["updates"]),
            f"{operations[part] / operations['total']:.1%}",
        ]
        for part, label in parts.items()
    ]
    held = {
        "teacher, weights": memory["teacher"],
        "those of them in use": memory["teacher_in_use"],
        "student, weights": memory["student"],
        "optimizer, two moments": memory["optimizer"],
        "gradients": memory["gradients"],
        f"activations of {batch['micro_batch']} sequences": memory["activations"],
        "at the worst moment": memory["peak"],
        "a checkpoint, on disk": memory["checkpoint"],
    }
    return "\n\n".join(
        [
            markdown_table(["run", ""], [*_run_facts(run)]),
            markdown_table(["operations", "an update", "in all", "share"], work),
            markdown_table(
                ["memory of a device", ""],
                [[label, _scaled(size) + "B"] for label, size in held.items()],
            ),
            markdown_table(
                ["cost", ""], [*_device_facts(plan["time"]), *_batch_facts(plan)]
            ),
        ]
    )


def _run_facts(run):
    yield "teacher", run["teacher"]
    trained = count(run["trained_parameters"])
    yield "student", f"{run['student']}, {trained} of them trained"
    yield (
        "updates",
        f"{run['updates']:,} of {run['batch_size']} x {run['sequence_length']} tokens",
    )
    yield "tokens in all", _scaled(run["tokens"])
    yield "precision", run["dtype_policy"]


def _device_facts(cost):
    number = cost["num_devices"]
    yield "device", f"{cost['device']}, {number} device{'s' if number > 1 else ''}"
    rate = _scaled(cost["half_rate"])
    if cost["half_rate"] != cost["float32_rate"]:
        rate += f", {_scaled(cost['float32_rate'])} in float32"
    yield "operations/s of a device", f"{rate} ({cost['rates_from']})"
    yield "share of them reached", f"{cost['share_reached']:.0%} ({cost['share_from']})"
    yield "time of an update", f"{_rounded(cost['seconds_of_update'])} s"
    hours = cost["hours"]
    days = f", {_rounded(hours / 24)} days" if hours >= 48 else ""
    yield "time in all", f"{_rounded(hours)} hours{days}"


def _batch_facts(plan):
    batch, memory = plan["batch"], plan["time"]["memory"]
    if memory is None:
        yield "memory of a device", "not known: pass --memory"
        return
    yield (
        "memory of a device",
        f"{_scaled(memory)}B, {_scaled(batch['usable'])}B of it to use",
    )
    yield (
        "largest batch that fits",
        f"{batch['largest']:,} sequences; the recipe has {batch['of_device']:,}",
    )
    steps = batch["accumulation_steps"]
    yield "accumulation_steps", "does not fit" if steps is None else f"at least {steps}"


def _rounded(number):
    """A number with three figures, without an exponent above 1,000."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _scaled(number):
    """A number with three figures and a unit of 10^3 to 10^21."""
    for unit, size in zip("ZEPTGMK", range(21, 0, -3), strict=True):
        if number >= 10**size:
            return f"{number / 10**size:.3g} {unit}"
    return f"{number:.3g}"
