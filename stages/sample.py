"""Let the trained model write sample texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from chargpt.checkpoint import load_model
from chargpt.device import pick_device
from chargpt.errors import ChargptError
from chargpt.files import write_text
from chargpt.sampling import generate

if TYPE_CHECKING:
    from chargpt.params import Params


def main(params: Params) -> None:
    """Continue the prompt num_samples times. Raises ChargptError if the model does not know one of its characters."""
    model, vocab = load_model("artifacts/model.safetensors", pick_device(params.device))
    try:
        prompt = torch.tensor([vocab.encode(params.prompt)] * params.num_samples)
    except ChargptError as error:
        raise ChargptError(f"prompt: {error}; choose another with -S prompt=...") from None
    ids = generate(
        model,
        prompt,
        params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        generator=torch.Generator().manual_seed(params.seed),
    )
    texts = [f"=== sample {i} ===\n{vocab.decode(row)}\n" for i, row in enumerate(ids.tolist(), start=1)]
    write_text("artifacts/sample.txt", "\n".join(texts))


if __name__ == "__main__":
    raise SystemExit("error: type: python -m stages sample")
