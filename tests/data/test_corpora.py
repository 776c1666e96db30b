"""Rows become corpora."""

import hashlib
import pathlib

import numpy as np
import pytest

from imbal_jax.data.corpora import Corpus, Recordings, Row, corpus_of, fingerprint
from imbal_jax.errors import InputError

SPLITS = ("train", "validation", "test")


def test_rows_become_recordings_in_their_order():
    rows = [Row("z", "b", "test"), Row("y", "a", "train", "s"), Row("x", "b", "train"), Row("w", "a", "test", "s")]
    corpus = corpus_of("name", ("a", "b"), rows, ["said"])
    assert list(corpus.splits) == ["train", "test"]
    assert corpus.splits["train"].speakers == ("s", "")
    assert [path.name for path in corpus.splits["test"].paths] == ["z", "w"]
    assert corpus.notes == ("said", "speakers in more than one split: s (1)")
    with pytest.raises(InputError, match=r"^empty: expected at least one recording"):
        corpus_of("empty", ("a", "b"), [])


def example_corpus(folder="/data", speakers=("x", "y"), labels=(0, 1), class_names=("a", "b"), split="train"):
    paths = (pathlib.Path(folder) / "one" / "p.wav", pathlib.Path(folder) / "two" / "q.wav")
    return Corpus("c", class_names, {split: Recordings(paths, np.array(labels, np.int32), speakers)})


def test_the_fingerprint_tells_corpora_apart_but_not_places():
    # Stored results name it: it must be the same on every machine and in every release.
    text = b'[["a", "b"], [["train", ["one/p.wav", "two/q.wav"], [0, 1], ["x", "y"]]]]'
    same = [example_corpus(), example_corpus("/elsewhere/deep"), example_corpus("relative")]
    same.append(example_corpus()._replace(name="d", notes=("n",)))
    assert {fingerprint(corpus) for corpus in same} == {hashlib.sha256(text).hexdigest()}
    options = [{"speakers": None}, {"speakers": ("x", "z")}, {"labels": (1, 0)}, {"split": "test"}]
    others = [example_corpus(**each) for each in [*options, {"class_names": ("b", "a")}]]
    assert len({fingerprint(corpus) for corpus in [*same, *others]}) == 6
