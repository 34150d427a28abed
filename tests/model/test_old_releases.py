"""A model file that the first release wrote, at toy size, is read as that release read it."""

from __future__ import annotations

import torch

from chargpt.inference.sampling import Sampling, generate
from chargpt.model.file import load_model, read_model
from tests.pipeline import ROOT

OLD = ROOT / "tests/data/v0.1.0"


def test_a_model_file() -> None:
    """With the text and the logits of the code that wrote it."""
    model, vocab = load_model(OLD / "model.safetensors")
    written = generate(model, torch.tensor([vocab.encode("9 bottles of ")]), 60, Sampling(temperature=0))
    assert vocab.decode(written[0]) == (
        "9 bottles of ottle ottle of of otllller otlller otlller otlller otlller o"
    )  # fmt: skip
    logits = model(torch.tensor([vocab.encode("9 bottles of beer on")])[:, :8])[0, -1]
    torch.testing.assert_close(
        logits[:5].detach(), torch.tensor([-0.6032941, 3.2094593, -0.869508, -1.3818066, -0.8693285]), atol=1e-5, rtol=0
    )
    assert read_model(OLD / "model.safetensors").params["lr"] == 0.02
