"""The files beside the versions: a README and examples of a server's settings."""

import json
import shlex
import urllib.parse

from keras_minilmv2.serving.manifest import MANIFEST
from keras_minilmv2.utils.files import replacing_file

_MODELS_CONFIG = """\
# tensorflow_model_server --model_config_file=models.config
model_config_list {{
  config {{
    name: {name}
    base_path: {path}
    model_platform: "tensorflow"
    # A number for each version to serve; without it, the latest alone.
    # model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    # version_labels {{ key: "stable" value: 1 }}
  }}
}}
"""

_BATCHING_PARAMETERS = """\
# tensorflow_model_server --enable_batching --batching_parameters_file=...
# Requests with strings are put together as they are. Those of `token_ids` only where
# their lengths are equal.
max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
num_batch_threads { value: 4 }
max_enqueued_batches { value: 100 }
"""

_README = """\
# {name}

{kind} of family {family}, {num_layers} layers of {hidden_dim}, for TensorFlow Serving.
It takes raw strings: the tokenizer is inside. Rows are cut to {lengths} tokens.

## Start a server

```sh
docker run --rm -p 8500:8500 -p 8501:8501 \\
    -v {mount} -e {variable} tensorflow/serving
```

or, where the server is installed,

```sh
tensorflow_model_server --port=8500 --rest_api_port=8501 \\
    --model_name={word} --model_base_path={path}
```

`models.config` and `batching_parameters.txt` are examples for
`--model_config_file` and, with `--enable_batching`, `--batching_parameters_file`.

{ops}

## Send requests

```sh
curl {url}
curl {url}/metadata
```

{requests}

## What is here

`{manifest}` in a version's directory lists inputs and outputs with their shapes, and
checksums. A directory whose name starts with `.export-` is what an interrupted export
left; the next one removes it. To compare the latest version with Keras' answers at its
export:

```sh
keras-minilmv2 serve-check {path}
```
"""


# In every README of an export.
_MARK = "keras-minilmv2 serve-check "


def write_beside(directory, manifest, samples):
    """Writes `README.md`, and settings where there are none.

    A `README.md` that no export wrote is not replaced. TensorFlow Serving reads only
    directories whose name is a number.

    Args:
        directory: path of the directory of the versions.
        manifest: dict, the manifest of the latest version.
        samples: sequence of `Sample`, the first ones for each signature first.
    """
    path = directory.resolve()
    readme = _README.format(
        name=path.name,
        url=_url(path.name),
        word=shlex.quote(path.name),
        path=shlex.quote(str(path)),
        mount=shlex.quote(f"{path}:/models/{path.name}"),
        variable=shlex.quote(f"MODEL_NAME={path.name}"),
        kind=manifest["model"]["kind"].capitalize(),
        family=manifest["model"]["family"],
        num_layers=manifest["model"]["num_layers"],
        hidden_dim=manifest["model"]["hidden_dim"],
        lengths=manifest["sequence_lengths"][-1],
        ops=_ops(manifest["custom_ops"]),
        requests="\n\n".join(_requests(path.name, manifest, samples)),
        manifest=MANIFEST,
    )
    # Only one that an export wrote is replaced.
    existing = path / "README.md"
    if not existing.exists() or _MARK in existing.read_text(errors="replace"):
        _write(existing, readme)
    quoted = {"name": json.dumps(path.name), "path": json.dumps(str(path))}
    for file, text in (
        ("models.config", _MODELS_CONFIG.format(**quoted)),
        ("batching_parameters.txt", _BATCHING_PARAMETERS),
    ):
        if not (path / file).exists():
            _write(path / file, text)


def _ops(custom_ops):
    if not custom_ops:
        return "The graph has no ops but TensorFlow's own."
    names = ", ".join(f"`{op['op']}`" for op in custom_ops)
    releases = {op["tensorflow_serving"] for op in custom_ops}
    if None in releases:
        known = "Which releases of TensorFlow Serving have them is not known."
    else:
        # All of one release so far.
        known = f"TensorFlow Serving has them from {max(releases)} on."
    return f"The graph has ops of TF Text: {names}. {known}"


def _url(name):
    return f"http://localhost:8501/v1/models/{urllib.parse.quote(name)}"


def _requests(name, manifest, samples):
    """A command for each signature."""
    seen = set()
    for sample in samples:
        if sample.signature in seen:
            continue
        seen.add(sample.signature)
        rows = [
            dict(zip(sample.inputs, values, strict=True))
            for values in zip(*sample.inputs.values(), strict=True)
        ]
        outputs = manifest["signatures"][sample.signature]["outputs"]
        body = {"signature_name": sample.signature, "instances": rows[:2]}
        lines = [
            f"`{sample.signature}` gives, for each row,",
            "",
            *(
                f"- `{key}`, {output['dtype']}: {output['description']}"
                for key, output in outputs.items()
            ),
            "",
            "```sh",
            f"curl {_url(name)}:predict \\",
            f"    --data {shlex.quote(json.dumps(body))}",
            "```",
        ]
        yield "\n".join(lines)


def _write(path, text):
    with replacing_file(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
