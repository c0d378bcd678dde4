"""Finds the files of a corpus and looks whether they hold text."""

import glob
import os
import re

_SUFFIXES = (".txt", ".txt.gz")

# How files start that are no text.
_SIGNATURES = {
    b"\xff\xfe\x00\x00": "text in UTF-32",
    b"\x00\x00\xfe\xff": "text in UTF-32",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"\x1f\x8b": "compressed by gzip, and is not named .gz",
    b"BZh91AY&SY": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"Obj\x01": "Avro",
    b"%PDF-": "PDF",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF\r\n": "HDF5",
    b"\x93NUMPY": "a NumPy array",
}
_JSON = re.compile(rb'\s*(\[\s*)?\{\s*"[^"\n]{1,200}"\s*:')
# Of text in UTF-16 without a byte order mark, most of every other byte is NUL where the
# script is Latin; of a binary file, NUL are many.
_LEAST_NULS = 4
_UTF_16_SHARE = 0.4
_BINARY_SHARE = 0.05


def find_inputs(sources):
    """The files of the sources of a corpus.

    Args:
        sources: sequence of str. As for `Corpus`.

    Returns:
        tuple of a tuple of str, the files in the order of the sources, with TFDS
        datasets and `-` as they are; and a dict of str, why a file below a directory
        is skipped, by path.

    Raises:
        ValueError: if a source has no text file, or two hold the same one.
    """
    inputs, skipped, first_source = [], {}, {}
    for number, source in enumerate(sources):
        found = {}
        for name in _inputs(source, skipped):
            if found.setdefault(_identity(name), name) != name:
                skipped[name] = "linked twice"
        for identity, name in found.items():
            if identity in first_source:
                other = sources[first_source[identity]]
                raise ValueError(
                    "`sources` must name every input once. "
                    f"Received: {name!r}, which is in {other!r} and in {source!r}."
                )
            first_source[identity] = number
            inputs.append(name)
    return tuple(inputs), skipped


def log_skipped(skipped, log):
    """Logs one sentence about the files that a corpus skips, if there are any."""
    if not skipped:
        return
    counts = {}
    for reason in skipped.values():
        counts[reason] = counts.get(reason, 0) + 1
    parts = (f"{count:,} {reason}" for reason, count in counts.items())
    log(f"Skipped in the directories of the corpus: {', '.join(parts)}.")


def check_is_text(block, path):
    """Raises unless a file may hold text, by its first block.

    Args:
        block: bytes.
        path: str, for the message.

    Raises:
        ValueError: with what the file holds instead.
    """
    if content := _content(block):
        raise ValueError(
            "`sources` must be files of UTF-8 text. "
            f"Received: {path}, which is {content}."
        )


def is_url(path):
    """Whether a path is one that fsspec opens, `gs://bucket/name` for instance."""
    return "://" in path


def _content(block):
    """What a file holds that is no UTF-8 text, or None."""
    for signature, content in _SIGNATURES.items():
        if block.startswith(signature):
            return content
    nuls = [block[parity::2].count(0) for parity in (0, 1)]
    half = len(block) / 2
    if max(nuls) >= _LEAST_NULS:
        if max(nuls) > _UTF_16_SHARE * half and min(nuls) < 0.1 * max(nuls):
            return "text in UTF-16"
        if sum(nuls) > _BINARY_SHARE * len(block):
            return "binary"
    if _JSON.match(block):
        return "JSON, whose braces and keys would be read as text"
    return None


def _inputs(source, skipped):
    """The files of one source, or the source itself if it is no path."""
    if source == "-" or source.startswith("tfds:"):
        return [source]
    if is_url(source):
        paths, text_files = _urls(source), _text_urls
    else:
        path = os.path.expanduser(source)
        paths, text_files = [path], _text_files
        if not os.path.exists(path):
            paths = sorted(glob.glob(path, recursive=True))
    if not paths:
        raise ValueError(
            "`sources` must name files that exist. "
            f"Received: {source!r}, which matches nothing."
        )
    files = [file for path in paths for file in text_files(path, skipped)]
    if not files:
        raise ValueError(
            "`sources` must name directories with `.txt` or `.txt.gz` files. "
            f"Received: {source!r}, which has none."
        )
    # A glob may match a directory and what is in it.
    return list(dict.fromkeys(files))


def _identity(name):
    """What two names of one input have in common."""
    if name.startswith("tfds:"):
        return name if "@" in name else f"{name}@train"
    return name if name == "-" or is_url(name) else os.path.realpath(name)


def _text_files(path, skipped):
    """The text files below a directory, sorted by path, or the file itself."""
    if not os.path.isdir(path):
        return [path]
    files, seen = [], {os.path.realpath(path)}
    for folder, folders, names in os.walk(path, followlinks=True):
        for name in list(folders):
            inside = os.path.join(folder, name)
            real = os.path.realpath(inside)
            if name.startswith("."):
                skipped[inside] = "hidden"
            elif real in seen:
                skipped[inside] = "linked twice"
            else:
                seen.add(real)
                continue
            folders.remove(name)
        files += [os.path.join(folder, name) for name in names]
    return _chosen(files, skipped, os.path.basename)


def _urls(url):
    """The URL itself if it exists, or what it matches as a glob, sorted."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    if filesystem.exists(path):
        return [url]
    return sorted(map(filesystem.unstrip_protocol, filesystem.glob(path)))


def _text_urls(url, skipped):
    """The text files below a URL, sorted, or the URL itself if it is a file."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    if not filesystem.isdir(path):
        return [url]
    root = filesystem.unstrip_protocol(path).rstrip("/")
    files = map(filesystem.unstrip_protocol, filesystem.find(path))
    return _chosen(files, skipped, lambda name: name.removeprefix(root))


def _chosen(files, skipped, shown):
    """The files that are read, sorted; notes why the others are not."""
    chosen = []
    for file in sorted(files):
        if any(part.startswith(".") for part in shown(file).split("/")):
            skipped[file] = "hidden"
        elif not file.lower().endswith(_SUFFIXES):
            skipped[file] = "not named .txt or .txt.gz"
        else:
            chosen.append(file)
    return chosen
