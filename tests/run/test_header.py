from __future__ import annotations

import json
from dataclasses import dataclass

import torch

import normlens
from normlens.run.header import session_header
from support.networks import conv_batch_norm


@dataclass(frozen=True)
class Asks:
    layers: str = "0*"


def test_the_header_says_what_made_the_numbers_and_is_json():
    model = conv_batch_norm()
    header = session_header(torch.compile(model, backend="eager"), {"asks": Asks()}, {"seed": 3}, {"lr": 0.1})
    assert json.loads(json.dumps(header)) == header
    assert header["normlens"] == normlens.__version__
    assert header["torch"] == torch.__version__
    assert header["parameters"] == sum(p.numel() for p in model.parameters())
    assert header["layers"] == [name for name, _ in model.named_modules() if name]
    assert header["probes"] == {"asks": {"layers": "'0*'"}}
    assert header["seed"] == 3
    assert header["config"] == {"lr": 0.1}
    assert header["machine"]["device"] == "cpu"
