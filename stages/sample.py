"""Let the trained model write sample texts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chargpt.errors import ChargptError
from chargpt.files import write_text
from chargpt.inference.decoder import place
from chargpt.inference.sampling import Random, Sampling, generate
from chargpt.model.file import read_model
from chargpt.paths import MODEL, SAMPLES

if TYPE_CHECKING:
    from chargpt.params import Params


def main(params: Params) -> None:
    """Continue the prompt num_samples times. Raises ChargptError if the model does not know one of its characters."""
    model = read_model(MODEL)
    try:
        prompt = [model.vocab.encode(params.prompt)] * params.num_samples
    except ChargptError as error:
        raise ChargptError(f"prompt: {error}; choose another with -S prompt=...") from None
    sampling = Sampling(params.temperature, params.top_k, params.top_p)
    ids = generate(place(model, params.device), prompt, params.max_tokens, sampling, Random(params.seed))
    texts = [f"=== sample {i} ===\n{model.vocab.decode(row)}\n" for i, row in enumerate(ids.tolist(), start=1)]
    write_text(SAMPLES, "\n".join(texts))
    print(f"sample: wrote {SAMPLES}; to generate more, run: chargpt generate", file=sys.stderr)
