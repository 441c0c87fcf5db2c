from __future__ import annotations

import argparse

import pytest

from normlens.cli.errors import UsageError
from normlens.cli.variant import split_names, variants


def options(**changes) -> argparse.Namespace:
    plain = {"norm": "none", "optimizer": "sgd", "weights": "none", "schedule": "constant", "augment": "none"}
    return argparse.Namespace(**{**plain, "seeds": "0", **changes})


def test_every_combination_is_one_training_and_only_what_varies_is_in_its_label():
    found, varying = variants(options(norm="batch_norm,none", optimizer="sgd,bnp", seeds="1,2"))
    assert varying == {"norm", "optimizer", "seed"}
    assert len(found) == 8
    assert found[0].label(varying) == "batch_norm, sgd, seed 1"
    assert found[-1].label(varying) == "none, bnp, seed 2"


def test_alone_it_is_called_by_its_norm_and_its_file_by_all_that_is_unusual():
    (found,), varying = variants(options(norm="layer_norm", weights="weight_norm", schedule="legw", seeds="7"))
    assert varying == set()
    assert found.label(varying) == "layer_norm"
    assert found.file == "layer_norm-weight_norm-legw-seed7"


def test_the_files_of_all_variants_differ():
    lists = {"norm": "none,layer_norm", "optimizer": "sgd,bnp", "augment": "none,apr_pair", "seeds": "0,1"}
    found, _ = variants(options(**lists))
    assert len({variant.file for variant in found}) == len(found) == 16


def test_names_are_split_at_commas_and_blanks_do_not_count():
    assert split_names(" a, b ,", "norm") == ["a", "b"]


@pytest.mark.parametrize("text", ["", ",", "a,a"])
def test_no_name_and_the_same_name_twice_are_refused(text):
    with pytest.raises(UsageError, match="--weights needs one or more different names"):
        split_names(text, "weights")


def test_seeds_that_are_no_integers_are_refused():
    with pytest.raises(UsageError, match=r"--seeds must be integers, separated by commas; got '1\.5'"):
        variants(options(seeds="1.5"))
