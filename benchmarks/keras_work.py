"""Competitors on Keras: the loss, the whole step, inference, serving, products.

See worker.py. The loss runs on TensorFlow or JAX, whichever `KERAS_BACKEND` says, the
rest on TensorFlow.
"""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from shapes import PAIRS
from worker import Work, serve

NAMES = ("query", "key", "value")


def loss(
    batch,
    length,
    widths,
    num_relation_heads,
    dtype="float32",
    blocked=True,
    share_of_real=1.0,
    seed=0,
):
    """The relation loss of random vectors and its gradient."""
    from keras_minilmv2.distillation.losses import RelationLoss

    generator = np.random.default_rng(seed)
    teacher, student = (
        {
            name: keras.ops.cast(
                generator.standard_normal((batch, length, 12, width // 12), "float32"),
                dtype,
            )
            for name in NAMES
        }
        for width in widths
    )
    mask = np.arange(length) < round(share_of_real * length)
    mask = keras.ops.convert_to_tensor(np.tile(mask, (batch, 1)), "int32")
    relation_loss = RelationLoss(num_relation_heads, blocked=blocked)
    on_jax = keras.backend.backend() == "jax"

    def mean(student, teacher, mask):
        y_true = {**teacher, "padding_mask": mask}
        # As the distiller does: static shapes for XLA.
        losses, _ = relation_loss.sequence_losses(y_true, student, static_shapes=on_jax)
        return keras.ops.mean(losses)

    if on_jax:
        import jax

        function = jax.jit(jax.value_and_grad(mean))

        def run():
            jax.block_until_ready(function(student, teacher, mask))

        def finish():
            statistics = jax.local_devices()[0].memory_stats() or {}
            return {"peak_device_memory": statistics.get("peak_bytes_in_use")}

        device = jax.local_devices()[0].device_kind
        return Work(run, {"device": device, "jax": jax.__version__}, finish)

    import tensorflow as tf

    @tf.function
    def function(student, teacher, mask):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = mean(student, teacher, mask)
        return tape.gradient(value, student)

    def run():
        function(student, teacher, mask)["query"].numpy()

    return Work(run)


def backbone(pair, sizes):
    """A keras-nlp encoder with random weights."""
    import keras_hub

    options = dict(
        vocabulary_size=pair.vocabulary_size,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        hidden_dim=sizes.hidden_dim,
        intermediate_dim=sizes.intermediate_dim,
        max_sequence_length=pair.max_sequence_length,
    )
    if pair.family == "bert":
        return keras_hub.models.BertBackbone(**options)
    return keras_hub.models.XLMRobertaBackbone(**options)


def make_distiller(pair, blocked, accumulation_steps, seed):
    """A distiller of new models, compiled.

    Args:
        pair: `shapes.Pair`.
        blocked: bool. False for the plain formula, and blocks as keras-nlp
            runs them.
        accumulation_steps: int.
        seed: int.

    Returns:
        tuple of teacher, student and distiller.
    """
    import keras_minilmv2 as km
    from keras_minilmv2.backbones import projections

    if not blocked:
        projections.can_be_flat = lambda block: False

    keras.utils.set_random_seed(seed)
    teacher = backbone(pair, pair.teacher)
    student = km.student_backbone(
        teacher,
        num_layers=pair.student.num_layers,
        num_heads=pair.student.num_heads,
        hidden_dim=pair.student.hidden_dim,
        intermediate_dim=pair.student.intermediate_dim,
        seed=seed,
    )
    distiller = km.RelationDistiller(
        teacher,
        student,
        pair.teacher_layer,
        relation_loss=km.RelationLoss(pair.num_relation_heads, blocked=blocked),
    )
    distiller.compile(
        km.adamw(6e-4, warmup_steps=4_000, total_steps=400_000),
        accumulation_steps=accumulation_steps,
    )
    return teacher, student, distiller


def step(
    pair,
    batch=None,
    length=None,
    policy="float32",
    blocked=True,
    accumulation_steps=1,
    depth=None,
    seed=0,
):
    """One update of the student, dropout on, as `fit` does it."""
    import tensorflow as tf

    from keras_minilmv2.planning.costs import step_operations

    keras.config.set_dtype_policy(policy)
    pair = PAIRS[pair]
    if depth is not None:
        teacher = replace(pair.teacher, num_layers=depth)
        pair = replace(pair, teacher=teacher, teacher_layer=depth)
    batch, length = batch or pair.batch, length or pair.length
    teacher, student, distiller = make_distiller(
        pair, blocked, accumulation_steps, seed
    )
    token_ids = np.random.default_rng(seed).integers(
        0, pair.vocabulary_size, (batch, length), dtype="int32"
    )
    inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    dataset = tf.data.Dataset.from_tensors(inputs).repeat()
    distiller.make_train_function()
    batches = iter(dataset)

    def run():
        for value in distiller.train_function(batches).values():
            float(value)

    operations = step_operations(
        teacher,
        student,
        pair.teacher_layer,
        pair.num_relation_heads,
        distiller.relation_loss.pairs,
        batch,
        length,
    )
    return Work(run, {"operations": operations})


def matmul(dtype="float32", size=2_048, seed=0):
    """A product of two square matrices."""
    import tensorflow as tf

    generator = np.random.default_rng(seed)
    a, b = (
        tf.cast(generator.standard_normal((size, size), "float32"), dtype)
        for _ in range(2)
    )
    function = tf.function(tf.matmul)

    def run():
        function(a, b)[0, 0].numpy()

    return Work(run, {"operations": 2 * size**3})


def forward(pair, role, through, batches, lengths, seed=0):
    """Inference of teacher or student; the key of a run is `BATCHxLENGTH`.

    Through `"keras"` the backbone itself, in one `tf.function` of token ids; through
    `"saved_model"` the exported one, of strings.
    """
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    pair = PAIRS[pair]
    model = backbone(pair, getattr(pair, role))
    if through == "keras":
        generator = np.random.default_rng(seed)
        specs = {
            name: tf.TensorSpec((None, None), "int32", name=name)
            for name in model.input
        }
        function = tf.function(
            lambda inputs: model(inputs, training=False), input_signature=[specs]
        )

        def inputs_of(batch, length):
            token_ids = generator.integers(
                0, pair.vocabulary_size, (batch, length), "int32"
            )
            values = {name: np.zeros_like(token_ids) for name in specs}
            values |= {"token_ids": token_ids, "padding_mask": token_ids * 0 + 1}
            return {name: tf.constant(value) for name, value in values.items()}

    else:
        import tensorflow_text  # noqa: F401 (registers its ops)

        words, tokenizer = bert_tokenizer(pair.vocabulary_size)
        loaded, _ = exported(model, tokenizer, lengths)

        def function(inputs):
            return loaded.signatures["serving_default"](**inputs)

        def inputs_of(batch, length):
            # Two of the tokens are the special ones.
            text = " ".join(words[i % len(words)] for i in range(length - 2))
            return {"text": tf.constant([text] * batch)}

    shapes = [(batch, length) for batch in batches for length in lengths]
    inputs = {f"{b}x{n}": inputs_of(b, n) for b, n in shapes}

    def run(key):
        outputs = function(inputs[key])
        batch, length, _ = outputs["sequence_output"].shape
        if f"{batch}x{length}" != key:
            raise ValueError(f"The outputs of {key} are {batch} x {length}.")
        for output in outputs.values():
            output.numpy()

    return Work(run)


def fine_tune(pair, batch, lengths, through="flat blocks", seed=0):
    """A step of fine-tuning a student for two classes; keys are lengths.

    Args:
        pair: str.
        batch: int.
        lengths: sequence of int.
        through: `"flat blocks"`, `"keras-nlp's blocks"`, or `"train_on_batch"` of the
            keras-nlp model.
        seed: int.
    """
    from keras_minilmv2.backbones.flat_blocks import with_flat_blocks
    from keras_minilmv2.downstream.classifiers import text_classifier
    from keras_minilmv2.training.schedule import adamw
    from keras_minilmv2.training.supervised import training_step

    pair = PAIRS[pair]
    model = text_classifier(backbone(pair, pair.student), 2, seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = adamw(1e-5, warmup_steps=10, total_steps=1_000)
    if through == "train_on_batch":
        model.compile(optimizer, loss)

        def step(*batch):
            return np.ravel(model.train_on_batch(*batch))[0]

    else:
        if through == "flat blocks":
            model = with_flat_blocks(model)
        step = training_step(model, loss, optimizer)
    generator = np.random.default_rng(seed)
    width, inner = pair.student.hidden_dim, pair.student.intermediate_dim
    batches, operations = {}, {}
    for length in lengths:
        shape = batch, length
        # Products alone, forward and twice as much backward.
        block = 8 * width**2 + 4 * width * inner + 4 * length * width
        operations[str(length)] = 3 * batch * length * pair.student.num_layers * block
        inputs = {
            "token_ids": generator.integers(0, pair.vocabulary_size, shape, "int32"),
            "padding_mask": np.ones(shape, "int32"),
        }
        if "segment_ids" in model.input:
            inputs["segment_ids"] = np.zeros(shape, "int32")
        batches[str(length)] = inputs, generator.integers(0, 2, batch)

    def run(length):
        float(step(*batches[length]))

    return Work(run, {"operations": operations})


def load(pair, role, policy, weights, requests, tokens, lengths, seed=0):
    """Requests of one sentence from some clients at once; the key is how many."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 (registers its ops)

    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(policy)
    pair = PAIRS[pair]
    words, tokenizer = bert_tokenizer(pair.vocabulary_size)
    loaded, export_bytes = exported(
        backbone(pair, getattr(pair, role)), tokenizer, lengths, weights=weights
    )
    answer = loaded.signatures["embeddings"]
    generator = np.random.default_rng(seed)
    texts = [
        # Two of the tokens are the special ones.
        tf.constant([" ".join(generator.choice(words, number - 2))])
        for number in generator.integers(*tokens, requests, endpoint=True)
    ]
    latencies = {}

    def request(text):
        started = time.perf_counter()
        answer(text=text)["mean"].numpy()
        return time.perf_counter() - started

    def run(key):
        with ThreadPoolExecutor(int(key)) as clients:
            latencies.setdefault(key, []).extend(clients.map(request, texts))

    return Work(run, {"export_bytes": export_bytes}, lambda: {"latencies": latencies})


def bert_tokenizer(vocabulary_size):
    """Words of one token each, and the tokenizer that knows them."""
    import keras_hub

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"w{number}" for number in range(vocabulary_size - len(special))]
    return words, keras_hub.models.BertTokenizer([*special, *words])


def exported(model, tokenizer, lengths, weights="float32"):
    """The model as it is loaded from its export, and the bytes of its variables."""
    import tensorflow as tf

    from keras_minilmv2.serving.saved_model import export_saved_model

    with tempfile.TemporaryDirectory() as directory:
        version = export_saved_model(
            model,
            tokenizer,
            directory,
            sequence_length=tuple(lengths),
            weights=weights,
        )
        files = Path(version, "variables").iterdir()
        num_bytes = sum(file.stat().st_size for file in files)
        return tf.saved_model.load(str(version)), num_bytes


if __name__ == "__main__":
    serve({f.__name__: f for f in (loss, step, matmul, forward, fine_tune, load)})
