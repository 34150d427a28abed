"""Let the trained model write sample texts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chargpt.errors import ChargptError
from chargpt.files import write_text
from chargpt.inference.decoder import place
from chargpt.inference.facade import LanguageModel
from chargpt.inference.sampling import Random, Sampling, generate
from chargpt.model.file import read_model
from chargpt.paths import MODEL, SAMPLES
from chargpt.text.documents import SEPARATORS

if TYPE_CHECKING:
    from chargpt.params import Params


def main(params: Params) -> None:
    """Continue the prompt num_samples times, or write documents of as many characters in all.

    Raises ChargptError if the model does not know a character of the prompt.
    """
    file = read_model(MODEL)
    sampling = Sampling(params.temperature, params.top_k, params.top_p)
    try:
        prompt = [file.vocab.encode(params.prompt)] * params.num_samples
    except ChargptError as error:
        raise ChargptError(f"prompt: {error}; choose another with -S prompt=...") from None
    if file.params.get("documents") in SEPARATORS:
        language, left = LanguageModel(file), params.num_samples * params.max_tokens
        texts = []
        for text in language.documents(params.prompt, sampling, params.seed):
            texts.append(f"{text}{language.separator}")
            left -= len(texts[-1])
            if left <= 0:
                break
        write_text(SAMPLES, "".join(texts))
    else:
        ids = generate(place(file, params.device), prompt, params.max_tokens, sampling, Random(params.seed))
        texts = [f"=== sample {i} ===\n{file.vocab.decode(row)}\n" for i, row in enumerate(ids.tolist(), start=1)]
        write_text(SAMPLES, "\n".join(texts))
    print(f"sample: wrote {SAMPLES}; to generate more, run: chargpt generate", file=sys.stderr)
