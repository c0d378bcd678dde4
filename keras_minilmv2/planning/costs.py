"""Operations and memory of one update: arithmetic on shapes."""

from keras_minilmv2.backbones.projections import check_layer
from keras_minilmv2.distillation.relations import check_relation_heads
from keras_minilmv2.planning.shapes import encoder_shape
from keras_minilmv2.utils.checks import check_int


def step_operations(
    teacher, student, teacher_layer, num_relation_heads, pairs, batch, length
):
    """Counts the floating-point operations of one update.

    Counted are matrix products, two operations for a multiplication and an addition,
    and what is done to entries of attention and relation matrices, which are many:
    five operations for an entry of a softmax, as TensorFlow's profiler has it, and
    one for a difference. All other work on single entries (activations, norms,
    dropout, embeddings) is not counted: with the papers' shapes 1 or 2 in 100. Padding
    counts as tokens.

    - `teacher`: forward up to the projections of `teacher_layer` that a pair names.
    - `student_forward`: the same of the student's last layer.
    - `student_backward`: two products for each of the forward pass.
    - `relations`: the blocked loss and its gradient. With `d` and `e` the channels
      of a relation head of teacher and student, each entry of a pair's relations
      costs `2 (d + 1) + 2 (e + 1)` for the logits (the mask is a channel more),
      `2 (d + e)` for the divergence, `4 e` for the gradient, and 11 for two softmaxes
      and a difference.
    - `optimizer`: 20 for a trained parameter: 12 of Adam, 3 of weight decay, 5 of two
      norms and clipping. It is memory that limits these, not arithmetic.

    Args:
        teacher: `EncoderShape` or keras-nlp backbone.
        student: `EncoderShape` or keras-nlp backbone.
        teacher_layer: int, from 1.
        num_relation_heads: int. Must divide both `hidden_dim`s; of a pruned encoder,
            the channels of the heads left in the layer that is compared.
        pairs: iterable of pairs of letters of q, k, v, those that have a weight.
        batch: int, sequences.
        length: int, tokens of a sequence.

    Returns:
        dict of int by part, and `"total"`.

    Raises:
        ValueError: if there is no such layer, or the relation heads do not divide a
            width.
    """
    teacher, student = encoder_shape(teacher), encoder_shape(student)
    check_layer("teacher_layer", teacher_layer, len(teacher.blocks))
    check_int(num_relation_heads=num_relation_heads)
    depth = len(student.blocks)
    widths = {
        "teacher": teacher.layer_widths[teacher_layer - 1],
        "student": student.layer_widths[depth - 1],
    }
    hidden_dims = {"teacher": teacher.hidden_dim, "student": student.hidden_dim}
    check_relation_heads(num_relation_heads, hidden_dims, widths)
    pairs = list(pairs)
    projections = len(set("".join(pairs)))

    def forward(shape, layer):
        return _forward_operations(shape, layer, projections, batch, length)

    # Two tokens and a pair of letters.
    relation = 4 * widths["teacher"] + 8 * widths["student"] + 15 * num_relation_heads
    operations = {
        "teacher": forward(teacher, teacher_layer),
        "student_forward": forward(student, depth),
        "student_backward": 2 * forward(student, depth),
        "relations": len(pairs) * batch * length**2 * relation,
        "optimizer": 20 * student.num_parameters_up_to(depth, projections),
    }
    return {**operations, "total": sum(operations.values())}


def _forward_operations(shape, layer, num_projections, batch, length):
    """Operations up to the projections of a layer."""
    width, token = shape.hidden_dim, 0
    for heads, attended, neurons in shape.layers[: layer - 1]:
        # A token: projections and attention output; feed-forward; scores and their use.
        token += 8 * width * attended + 4 * width * neurons + 4 * length * attended
        token += 5 * heads * length
    token += 2 * num_projections * width * shape.layer_widths[layer - 1]
    if shape.projects_embeddings:
        token += 2 * shape.embedding_dim * width
    return batch * length * token


def step_memory(
    teacher,
    student,
    pairs,
    length,
    batch,
    dtype_policy="float32",
    accumulated=False,
):
    """Estimates the bytes of one device during an update.

    Weights, gradients and the optimizer's two moments are float32 under every policy;
    the teacher is held whole. Activations, in bytes for a token, with width `D`,
    feed-forward `F`, heads `h`, length `L` and `s` bytes for a number (4, or 2 in
    mixed precision):

    - kept for the backward pass: `42 D + 20 F + 9 h L` for each block of the student
      below its last, in mixed precision `36 D + 13 F + 5 h L`, and `16 E` of
      embeddings of width `E`. Counted in TensorFlow's graph, with dropout. `16 D` of
      the first, and `8 D` of the second, are of the heads, and shrink with them;
    - in use at a time: `s (3 D + max(4 F, 4 h L))` of the larger of teacher and
      student;
    - queries, keys and values: `12` bytes for each channel of the teacher and `20` of
      the student, for the float32 copies that the loss cuts into blocks.

    The blocks of the loss themselves (20 MB on a CPU, some 500 MB elsewhere) and the
    runtime are not counted. XLA, which joins operations, should need less. At the end
    of an update there are the gradients a second time, clipped, and a copy of the
    largest weight.

    Against the peak memory of a process on 2 CPU cores, without XLA, for five shapes
    of BERT and RoBERTa at lengths of 64 to 512, the activations of a sequence were
    estimated 0.94 to 1.24 times what they were.

    Args:
        teacher: `EncoderShape` or keras-nlp backbone.
        student: `EncoderShape` or keras-nlp backbone.
        pairs: iterable of pairs of letters of q, k, v.
        length: int, tokens of a sequence.
        batch: int, sequences that the device works on at a time.
        dtype_policy: str, as in a recipe.
        accumulated: bool. Whether an update sums the gradients of several batches.

    Returns:
        dict of int by part, and `"peak"`, what is held at the worst moment.
    """
    teacher, student = encoder_shape(teacher), encoder_shape(student)
    projections = len(set("".join(pairs)))
    depth = len(student.blocks)
    trained = student.num_parameters_up_to(depth, projections)
    mixed = dtype_policy != "float32"
    of_width, of_inner, of_scores = (36, 13, 5) if mixed else (42, 20, 9)
    # Of queries, keys, values and what attention gives.
    of_heads = 8 if mixed else 16
    kept = 16 * student.embedding_dim
    for heads, attended, neurons in student.layers[:-1]:
        kept += (of_width - of_heads) * student.hidden_dim + of_heads * attended
        kept += of_inner * neurons + of_scores * heads * length
    in_use = (2 if mixed else 4) * max(
        3 * shape.hidden_dim
        + 4 * max(*shape.layer_neurons, length * max(shape.layer_heads))
        for shape in (teacher, student)
    )
    vectors = projections * (12 * teacher.hidden_dim + 20 * student.hidden_dim)
    memory = {
        "teacher": 4 * teacher.num_parameters,
        "student": 4 * student.num_parameters,
        "optimizer": 8 * trained,
        "gradients": (8 if accumulated else 4) * trained,
        "activations": batch * length * (kept + in_use + vectors),
    }
    largest = 4 * student.vocabulary_size * student.embedding_dim
    held = memory["teacher"] + memory["student"] + memory["optimizer"]
    memory["peak"] = held + max(
        memory["gradients"] + memory["activations"], 8 * trained + largest
    )
    return memory
