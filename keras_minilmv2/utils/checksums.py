"""Checksums of arrays."""

import hashlib

import numpy as np


def sha256(*arrays):
    """One checksum of several arrays, a str of 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
