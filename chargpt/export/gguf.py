"""Export a model as a GGUF file, which llama.cpp and Ollama load as GPT-2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, LlamaFileType, TokenType, get_tensor_name_map

from chargpt.errors import ChargptError
from chargpt.export.layout import gpt2_layout, special_tokens
from chargpt.files import atomic_path, write_text
from chargpt.model.file import ModelFile

SPACE = "\u2581"  # stands for a space in tokenizers of the SentencePiece kind
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # llama.cpp reads a character outside the vocabulary as these

MODELFILE = """\
FROM ./{name}
TEMPLATE \"""{{{{ .Prompt }}}}\"""
PARAMETER num_ctx {block_size}
PARAMETER temperature 0.8
PARAMETER top_k 0
PARAMETER top_p 1
PARAMETER min_p 0
PARAMETER repeat_penalty 1
"""


def save_gguf(model: ModelFile, path: str | Path) -> str:
    """Write a model as a .gguf file (float32), and beside it a .Modelfile for Ollama.

    Each character is a token. llama.cpp also needs an unknown, a begin and an end token, and one for each byte; the
    model never produces these. An existing Modelfile with other content is kept, because people edit it.
    Returns a remark for the user if a Modelfile was kept, otherwise an empty string.
    Raises ChargptError if the model uses ReLU, which llama.cpp does not have for GPT-2, if the vocabulary holds U+2581,
    which llama.cpp reads as a space, or if a weight in GPT-2's layout is not finite.
    """
    path, c, vocab = Path(path), model.config, model.vocab
    if c.activation != "gelu":
        raise ChargptError(f"{path}: not written: llama.cpp has no {c.activation} for GPT-2; export to a directory")
    if SPACE in vocab.itos:
        raise ChargptError(f"{path}: not written: llama.cpp reads U+2581 as a space; export to a directory")
    more = special_tokens(vocab) + BYTES
    tensors, config = gpt2_layout(model, path, len(more))
    characters = [SPACE if character == " " else character for character in vocab.itos]
    names = get_tensor_name_map(MODEL_ARCH.GPT2, c.n_layer)
    with atomic_path(path) as temporary:
        writer = GGUFWriter(temporary, "gpt2")
        writer.add_file_type(LlamaFileType.ALL_F32)
        writer.add_context_length(c.block_size)
        writer.add_embedding_length(config["n_embd"])
        writer.add_block_count(c.n_layer)
        writer.add_feed_forward_length(config["n_inner"])
        writer.add_head_count(c.n_head)
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        writer.add_tokenizer_model("llama")
        writer.add_token_list(characters + more)
        writer.add_token_scores([0.0] * config["vocab_size"])
        kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
        writer.add_token_types([TokenType.NORMAL] * len(vocab) + kinds + [TokenType.BYTE] * len(BYTES))
        writer.add_unk_token_id(len(vocab))
        writer.add_bos_token_id(len(vocab) + 1)
        writer.add_eos_token_id(len(vocab) + 2)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(False)
        for name, tensor in tensors.items():
            stem, kind = name.rsplit(".", 1)
            if ".c_" in name and tensor.ndim == 2:
                tensor = tensor.T  # as torch stores linear layers
            writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(tensor))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    modelfile, text = path.with_suffix(".Modelfile"), MODELFILE.format(name=path.name, block_size=c.block_size)
    if modelfile.exists() and modelfile.read_bytes() != text.encode():
        return f"{modelfile} exists and was kept"
    write_text(modelfile, text)
    return ""
