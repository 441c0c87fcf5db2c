from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normlens.cli.errors import UsageError
from normlens.cli.recipe import augmentation, check_names, optimization, reparametrized, transforms
from normlens.cli.variant import Variant

SIZES = {"lr": 0.1, "batch_size": 64, "dataset_size": 640}


def variant(**changes) -> Variant:
    plain = {"norm": "none", "optimizer": "sgd", "weights": "none", "schedule": "constant", "augment": "none"}
    return Variant(**{**plain, "seed": 0, **changes})


def test_the_transforms_are_found_by_walking_the_package():
    assert {"bnp", "weight_rescaling"} <= set(transforms())
    assert not {"transform", "legw", "natural_gradient"} & set(transforms())


def test_a_transform_alone_hangs_on_sgd_and_says_so():
    how = optimization(nn.Linear(3, 2), variant(optimizer="bnp"), **SIZES)
    assert isinstance(how.optimizer, torch.optim.SGD)
    assert how.describe() == "SGD(lr=0.1, momentum=0.9) + BNP"
    assert how.schedule is None


def test_legw_rises_over_half_an_epoch():
    how = optimization(nn.Linear(3, 2), variant(schedule="legw"), **SIZES)
    rates = [how.optimizer.param_groups[0]["lr"]]
    for _ in range(6):
        how.optimizer.step()
        how.schedule.step()
        rates.append(how.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1])
    assert how.describe() == "SGD(lr=0.1, momentum=0.9)"


def test_weights_are_reparametrized_where_asked_for():
    layer = reparametrized(nn.Sequential(nn.Linear(3, 2)), "weight_norm")[0]
    assert parametrize.is_parametrized(layer, "weight")
    assert not parametrize.is_parametrized(reparametrized(nn.Linear(3, 2), "none"))


def test_an_augmentation_draws_from_its_seed_alone():
    x, y = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    before = torch.random.get_rng_state()
    one, two = (augmentation("apr_single", 3)(x, y)[0] for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, x)
    assert torch.equal(augmentation("none", 3)(x, y)[0], x)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "sgd+bnpp"}, "unknown name 'bnpp' in --optimizer: did you mean 'bnp'"),
        ({"optimizer": "sgd+adamw"}, "names two optimizers"),
        ({"weights": "wn"}, "unknown name 'wn' in --weights"),
        ({"schedule": "lgw"}, "did you mean 'legw'"),
        ({"augment": "apr_pairs"}, "did you mean 'apr_pair'"),
    ],
)
def test_a_name_that_nothing_answers_to_is_refused(changes, words):
    with pytest.raises(UsageError, match=words.replace("+", r"\+")):
        check_names(variant(**changes))
