"""Corpora that several recipes name."""

# TFDS' Wikipedias in the 15 languages of XNLI.
WIKIPEDIA_IN_15_LANGUAGES = tuple(
    f"tfds:wikipedia/20230601.{language}"
    for language in (
        *("en", "de", "fr", "es", "ru", "ar", "zh", "hi"),
        *("sw", "vi", "bg", "el", "th", "tr", "ur"),
    )
)
